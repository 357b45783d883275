"""Upload a model folder to the Hugging Face hub: its own files, and no path of this machine.

    push(Path("runs/lert-small/model"), "me/lert-small", private=True)
        →  https://huggingface.co/me/lert-small

Up go the weights, config.json, the tokenizer, the two files of code, run.json and the card; not
checkpoints, graphs or whatever else lies there. In run.json an absolute path becomes the name at
its end. A card that somebody has edited goes as it is; any other is made anew, with the name that
the model is loaded by on the hub.
"""

import contextlib
import json
import logging
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from lert_ds import model_card
from lert_ds.errors import ModelError, UserError
from lert_ds.files import write_json
from lert_ds.model_origin import title_of
from lert_ds.redaction import redact

log = logging.getLogger(__name__)

CODE = ("configuration_lert.py", "modeling_lert.py")
TOKENIZER = (
    *("vocab.txt", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_NAMES = (model_card.CONFIG, model_card.RUN, model_card.CARD, *CODE, *TOKENIZER, *WEIGHTS)
_PLACE = re.compile(r"(?:/|~[/\\]|[A-Za-z]:[/\\]|\\\\).*", re.DOTALL)
_REMEDIES = {
    401: "the token is not accepted: say `hf auth login` anew",
    403: "the token may not write there: make one that may, at huggingface.co/settings/tokens",
    404: "there is no such place, or the token may not see it: look at the name",
}

_HUB_ERRORS: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)
"""What the hub's client raises; its bases name the errors of the HTTP library that it uses."""


def push(
    folder: Path, name: str, *, private: bool | None = False, revision: str | None = None
) -> str:
    """Upload the model folder `folder` and return its address on the hub.

    Args:
        folder: As `lert_ds.model_dir.save` writes it.
        name: `owner/name`, or `name` alone for the token's owner. It is made where it is not there.
        private: Seen by its owner alone; a name that is public already is refused. None makes a
            new one private, and takes one that is there as it is.
        revision: The branch to write, made where it is not there; None for main.

    Raises:
        UserError: it is no model folder, the name is none, there is no token, or the hub refuses or
            cannot be reached.
    """
    check_name(name)
    files = list(files_of(folder))
    api = HfApi()
    if huggingface_hub.get_token() is None:
        raise UserError(
            f"{name}: there is no token for the Hugging Face hub; say `hf auth login`, or set "
            "HF_TOKEN"
        )
    with _told(name):
        made = api.create_repo(name, private=private is not False, exist_ok=True)
        if private and not api.repo_info(made.repo_id).private:
            raise UserError(
                f"{name}: it is there already and public; name another, make that one private, or "
                "leave --private out"
            )
        if revision is not None:
            api.create_branch(made.repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        _stage(folder, files, Path(place), made.repo_id)
        with _told(name):
            api.upload_folder(
                repo_id=made.repo_id,
                folder_path=place,
                revision=revision,
                commit_message=f"{title_of(folder.absolute())}, by lert-ds",
            )
    return str(made)


def try_push(folder: Path, name: str) -> None:
    """Upload the result of a training, or tell why not: by then nothing may fail it any more.

    A new name is made private.
    """
    try:
        log.info("uploaded: %s", push(folder, name, private=None))
    except Exception as error:  # noqa: BLE001 - the model is whole, and days of work lie behind it
        again = command(folder, name, private=True)
        log.warning("%s: NOT uploaded: %s; the model is whole, say again: %s", folder, error, again)


def check_name(name: str) -> None:
    """Refuse what cannot be a name on the hub, before any work.

    Raises:
        UserError: says what is wrong with it.
    """
    try:
        huggingface_hub.utils.validate_repo_id(name)  # type: ignore[attr-defined]
    except HFValidationError as error:
        raise UserError(
            f"{name}: this is no name on the Hugging Face hub ({_reason(error)}); say owner/name"
        ) from error


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a model folder that belong to it.

    Raises:
        ModelError: it has no config.json, or no weights as safetensors.
    """
    found = {path for name in _NAMES for path in folder.glob(name) if path.is_file()}
    if not (folder / model_card.CONFIG).is_file():
        raise ModelError(f"{folder}: no {model_card.CONFIG}, so it is no model folder; name one")
    if not any(path.suffix == ".safetensors" for path in found):
        raise ModelError(f"{folder}: a model folder without weights (no {WEIGHTS[0]})")
    yield from sorted(found)


def command(folder: Path, name: str, *, private: bool = False, revision: str | None = None) -> str:
    """Return the command that uploads a folder."""
    words = ["lert-ds", "card", str(folder), "--push-to-hub", name]
    words += ["--private"] if private else []
    words += ["--revision", revision] if revision is not None else []
    return shlex.join(words)


def without_places(tree: Any) -> Any:
    """Return JSON values in which each text that is an absolute path is the name at its end."""
    if isinstance(tree, str):
        return title_of(PurePath(tree.replace("\\", "/"))) if _PLACE.fullmatch(tree) else tree
    if isinstance(tree, dict):
        return {key: without_places(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [without_places(value) for value in tree]
    return tree


def _stage(folder: Path, files: list[Path], place: Path, address: str) -> None:
    """Fill `place` with links to the files, and with what is not to go as it is."""
    for path in files:
        (place / path.name).symlink_to(path.resolve())
    run, card = place / model_card.RUN, place / model_card.CARD
    if run.exists():
        tree = json.loads(run.read_text("utf-8"))
        run.unlink()
        write_json(run, without_places(tree))
    if not card.exists() or not model_card.is_edited(card.read_text("utf-8")):
        card.unlink(missing_ok=True)
        model_card.write_card(place, title_of(folder.absolute()), address)


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Make of what the hub and its client raise one sentence, which names the repository."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"{name}: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it"
        ) from error
    except HFValidationError as error:
        raise UserError(f"{name}: {_reason(error)}") from error
    except ValueError as error:
        if not str(error).startswith("Invalid metadata"):  # else it is ours
            raise
        raise UserError(
            f"{name}: the hub does not take the front matter of README.md ({_reason(error)}); "
            "correct it, or say --overwrite to have it made anew"
        ) from error
    except _HUB_ERRORS as error:
        raise UserError(f"{name}: {_remedy(error)} ({_reason(error)})") from error


def _remedy(error: Exception) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is None:
        return "no connection to the hub: look at the network, and try again"
    return _REMEDIES.get(status, "the hub does not take it: try again later")


def _reason(error: Exception) -> str:
    return redact(" ".join(str(error).split()))[:200] or type(error).__name__
