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

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )


C = TypeVar("C", bound=Config)


def _as_paths(value: object) -> object:
    # A tuple: after a validator of ours, pydantic's strict mode takes no list for one.
    values = [value] if isinstance(value, str) else value
    return tuple(values) if isinstance(values, list) else values


Paths = Annotated[tuple[Path, ...], BeforeValidator(_as_paths)]
"""One path or a list of them."""


def find(name: str, preset_folders: Iterable[Path]) -> Path:
    """Return the file that `name` stands for: a path to a TOML file, or the name of a preset."""
    folders = list(preset_folders)
    if name.endswith(".toml"):
        path = Path(name)
        if path.is_file():
            return path
        raise ConfigError(f"{name}: there is no such file")
    for folder in folders:
        if (path := folder / f"{name}.toml").is_file():
            return path
    presets = sorted(path.stem for folder in folders for path in folder.glob("*.toml"))
    raise ConfigError(
        f"{name}: neither a .toml file nor a preset{_nearest(name, presets)}; "
        f"the presets are {', '.join(presets)}"
    )


def load(cls: type[C], path: Path | None, overrides: Sequence[str] = ()) -> C:
    """Return `cls` filled from the TOML file at `path`, then from `overrides`, which win.

    Raises:
        ConfigError: names every key that is unknown, missing or of the wrong type, at once.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        _override(tree, override)
    return parse(cls, tree, str(path) if path is not None else "configuration")


def parse(cls: type[C], tree: Mapping[str, Any], where: str) -> C:
    """Return `cls` filled from `tree`; `where` opens the message of an error."""
    try:
        # Strict JSON: "1" is no number and 1 is no text, but text makes a path and a list a tuple.
        return cls.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        problems = [_problem(cls, problem) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(problems)) from error


def dump(config: Config) -> dict[str, Any]:
    """Return the resolved configuration as plain JSON values."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    return tree


def describe(cls: type[Config]) -> str:
    """Return the keys of `cls`, one a line: name, default, meaning."""
    rows = list(_fields(cls, ""))
    width = min(34, max(len(f"{name}={default}") for name, default, _ in rows))
    return "\n".join(f"  {f'{name}={default}':<{width}}  {text}" for name, default, text in rows)


def _fields(cls: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in cls.model_fields.items():
        inner = _model_of(field)
        if inner is not None:
            yield from _fields(inner, f"{prefix}{name}.")
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
        value = text  # a bare word or a path: TOML would ask for quotes, which the shell eats
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{override}: {parent} is a value, not a table")
    tree[leaf] = value


def _problem(cls: type[BaseModel], problem: Any) -> str:
    place, kind = problem["loc"], problem["type"]
    # Where a union was tried, pydantic names the branch in `loc`; the key is what the user wrote.
    key = ".".join(str(part) for part in place)
    if kind == "extra_forbidden":
        owner = _model_at(cls, place[:-1]) or cls
        names = list(owner.model_fields)
        near = _nearest(str(place[-1]), names)
        return f"unknown key {key}{near or f' (there are: {chr(44).join(names)})'}"
    if kind == "missing":
        return f"{key} is missing"
    if kind == "value_error":
        return f"{key + ': ' if key else ''}{problem['ctx']['error']}"
    return f"{key} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _model_at(cls: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = cls
    for part in place:
        field = model.model_fields.get(str(part)) if model is not None else None
        model = _model_of(field) if field is not None else None
    return model


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the configuration that a field nests, if it does."""
    candidates = [field.annotation, *typing.get_args(field.annotation)]
    for kind in candidates:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
