"""Run configurations: defaults, then a TOML file, then `a.b=value`, into frozen pydantic models."""

import difflib
import json
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from lert_ds.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys refused, a sentence under each field."""

    # Defaults are not validated: in JSON's strict mode a path that is one already is refused.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


def _as_several(value: object) -> object:
    # A tuple: after a validator of ours, pydantic's strict mode takes no list for one.
    values = [value] if isinstance(value, str) else value
    return tuple(values) if isinstance(values, list) else values


Paths = Annotated[tuple[Path, ...], BeforeValidator(_as_several)]
"""One path or a list of them."""
Names = Annotated[tuple[str, ...], BeforeValidator(_as_several)]
"""One name or a list of them."""


def find(name: str, preset_folders: Iterable[Path], command: str = "") -> Path:
    """Return the file that `name` stands for: a path to a TOML file, or the name of a preset.

    Where there is none, the presets that are told are those of `command`.
    """
    folders = list(preset_folders)
    if name.endswith(".toml"):
        path = Path(name)
        if path.is_file():
            return path
        raise ConfigError(f"{name}: there is no such file")
    for folder in folders:
        if (path := folder / f"{name}.toml").is_file():
            return path
    presets = sorted(path.stem for folder in folders for path in folder.glob(f"{command}*.toml"))
    raise ConfigError(
        f"{name}: neither a .toml file nor a preset{_nearest(name, presets)}; "
        f"the presets are {', '.join(presets)}"
    )


def load(cls: type[C], path: Path | None, overrides: Sequence[str] = ()) -> C:
    """Return `cls` filled from the TOML file at `path`, then from `overrides`, which win.

    Raises:
        ConfigError: names every key that is unknown, missing or of the wrong type, at once.
    """
    tree = read_tree(path, overrides)
    return parse(cls, tree, str(path) if path is not None else "configuration")


def read_tree(path: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Return what a file and `overrides` say, unchecked.

    Raises:
        ConfigError: the file is no TOML, or an override is none.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        _override(tree, override)
    return tree


def parse(cls: type[C], tree: Mapping[str, Any], where: str) -> C:
    """Return `cls` filled from `tree`; `where` opens the message of an error."""
    try:
        # Strict JSON: "1" is no number and 1 is no text, but text makes a path and a list a tuple.
        return cls.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_problems(cls, tree, error))) from error


def dump(config: Config) -> dict[str, Any]:
    """Return the resolved configuration as plain JSON values."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    return tree


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return what differs between two dumped configurations: `key: old → new`."""
    found = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {json.dumps(old)} → {json.dumps(new)}")
    return found


def describe(cls: type[Config]) -> str:
    """Return the keys of `cls`, one a line: name, default, meaning."""
    rows = list(_fields(cls, ""))
    width = min(34, max(len(f"{name}={default}") for name, default, _ in rows))
    return "\n".join(f"  {f'{name}={default}':<{width}}  {text}" for name, default, text in rows)


def _fields(cls: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in cls.model_fields.items():
        if inner := _models_of(field):
            yield from _fields(inner[0], f"{prefix}{name}.")
            continue
        text = " ".join((field.description or "").split())
        yield f"{prefix}{name}", _show_default(field), text


def _show_default(field: FieldInfo) -> str:
    if field.is_required():
        return "…"
    value = field.get_default(call_default_factory=True, validated_data={})
    return str(list(value)) if isinstance(value, tuple) else "" if value is None else str(value)


def _override(tree: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found or not key:
        raise ConfigError(f"{override}: write an override as key.path=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # null, which TOML lacks, takes back what a preset sets. Else it is a bare word or a path:
        # TOML would ask for quotes, which the shell eats.
        value = None if text == "null" else text
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{override}: {parent} is a value, not a table")
    tree[leaf] = value


_WORDS = {
    "int_type": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "bool_type": "true or false is needed",
    "string_type": "text is needed",
    "path_type": "a path is needed",
    "list_type": "a list is needed",
    "tuple_type": "a list is needed",
    "dict_type": "a table is needed",
    "model_type": "a table of keys is needed",
}
"""What pydantic says in the words of its JSON parser, in those of TOML."""


def _problems(cls: type[BaseModel], tree: Mapping[str, Any], error: ValidationError) -> list[str]:
    """Return a sentence a key; what the branches of a union say of one value is joined by "or"."""
    values: dict[str, list[str]] = {}
    others: list[str] = []
    for problem in error.errors():
        key, owner, inside = _locate(cls, tree, problem["loc"])
        kind = problem["type"]
        if kind == "extra_forbidden":
            names = list(owner.model_fields) if owner is not None else []
            near = _nearest(str(problem["loc"][-1]), names)
            others.append(f"unknown key {key}" + (near or f" (there are: {', '.join(names)})"))
        elif kind == "missing":
            others.append(f"{key} is missing")
        elif kind == "value_error":
            others.append(_rule(key, inside, str(problem["ctx"]["error"])))
        else:
            text = _WORDS.get(kind) or problem["msg"][0].lower() + problem["msg"][1:]
            told = values.setdefault(f"{key} = {problem['input']!r}: ", [])
            told += [text] if text not in told else []
    return list(dict.fromkeys(others)) + [
        value + ", or ".join(texts) for value, texts in values.items()
    ]


def _rule(key: str, inside: type[BaseModel] | None, message: str) -> str:
    """Return what a rule of the table `key` says; where it opens with a key, the key in full."""
    if not key:
        return message
    opens_with_key = inside is not None and message.split()[0].strip(":,") in inside.model_fields
    return f"{key}.{message}" if opens_with_key else f"{key}: {message}"


def _locate(
    cls: type[BaseModel], tree: Any, place: Sequence[int | str]
) -> tuple[str, type[BaseModel] | None, type[BaseModel] | None]:
    """Return the key that pydantic's `place` means, the table that has it, and the table it is.

    Pydantic also names the branch of a union that it tried; the user wrote no such key.
    """
    parts: list[str] = []
    owner: type[BaseModel] | None = None
    models: list[type[BaseModel]] = [cls]
    for part in place:
        field = next((m.model_fields[str(part)] for m in models if part in m.model_fields), None)
        written = isinstance(tree, list if isinstance(part, int) else Mapping)
        written = written and (isinstance(part, int) or part in tree)
        if field is None and not written:
            models = [model for model in models if _is_branch(model, str(part))]
            continue
        parts.append(str(part))
        owner = models[0] if models else None
        models = models if field is None else _models_of(field)
        tree = tree[part] if written else None
    return ".".join(parts), owner, models[0] if models else None


def _is_branch(model: type[BaseModel], name: str) -> bool:
    """Return whether pydantic calls the branch `model` of a union `name`: by class or by tag."""
    fields = model.model_fields.values()
    return model.__name__ == name or any(name in typing.get_args(f.annotation) for f in fields)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _models_of(field: FieldInfo) -> list[type[BaseModel]]:
    """Return the configurations that a field nests: more than one where it is a union of them."""
    candidates = [field.annotation, *typing.get_args(field.annotation)]
    return [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
