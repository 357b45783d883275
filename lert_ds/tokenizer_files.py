"""The tokenizer's files in a model or corpus folder: read them, copy them, add what lacks."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import BertTokenizer

from lert_ds.errors import ModelError

VOCABULARY, TOKENIZER, SETTINGS = "vocab.txt", "tokenizer.json", "tokenizer_config.json"
NAMES = (VOCABULARY, TOKENIZER, SETTINGS, "special_tokens_map.json", "added_tokens.json")


def load(folder: Path) -> Any:
    """Return the tokenizer of a model or corpus folder, a `transformers.BertTokenizer`.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    if not any((folder / name).is_file() for name in (VOCABULARY, TOKENIZER)):
        raise ModelError(
            f"{folder}: no tokenizer (neither {VOCABULARY} nor {TOKENIZER}); copy one into it"
        )
    try:
        # By its class, not by AutoTokenizer, which asks config.json: a corpus folder has none.
        return BertTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: its tokenizer cannot be read ({error})") from error


@contextlib.contextmanager
def folder_of(vocabulary: Path) -> Iterator[Path]:
    """Give a folder, for the time of the `with`, whose tokenizer is a vocab.txt alone."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copyfile(vocabulary, Path(name) / VOCABULARY)
        yield Path(name)


def pieces(tokenizer: Any) -> list[str]:
    """Return the pieces of a tokenizer in the order of their ids: the lines of vocab.txt."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def copy(source: Path, target: Path, vocabulary_size: int) -> None:
    """Copy the tokenizer of `source` into the folder `target`, byte for byte.

    Files that `source` lacks are made from those it has, so that every reader finds its own:
    transformers 5 reads tokenizer.json, and tokenizer_config.json names the class where it does not
    know the model; others read vocab.txt, which transformers 5 does not write.

    Raises:
        ModelError: no tokenizer, or it has ids beyond `vocabulary_size`.
    """
    tokenizer = load(source)
    if len(tokenizer) > vocabulary_size:
        raise ModelError(
            f"{source}: its tokenizer has {len(tokenizer)} pieces, the model embeds "
            f"{vocabulary_size}; use the tokenizer that the model was trained with"
        )
    with tempfile.TemporaryDirectory(dir=target) as name:
        made = Path(name)
        tokenizer.save_pretrained(made)
        _drop_traces_of_loading(made / SETTINGS)
        (made / VOCABULARY).write_text(
            "".join(f"{piece}\n" for piece in pieces(tokenizer)), "utf-8"
        )
        for file in NAMES:
            given = source / file
            if not given.is_file() or (file == SETTINGS and not _names_class(given)):
                given = made / file
            if given.is_file():
                shutil.copyfile(given, target / file)


def _names_class(settings: Path) -> bool:
    return "tokenizer_class" in json.loads(settings.read_text("utf-8"))


def _drop_traces_of_loading(settings: Path) -> None:
    tree = json.loads(settings.read_text("utf-8"))
    for key in ("is_local", "local_files_only"):
        tree.pop(key, None)
    settings.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", "utf-8")
