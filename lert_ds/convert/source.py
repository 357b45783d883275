"""The files of a TensorFlow checkpoint, found where their authors put them: a folder or a .zip.

    chinese_lert_base_L-12_H-768_A-12.zip
      lert_model.ckpt.index  lert_model.ckpt.data-00000-of-00001  lert_model.ckpt.meta (unread)
      lert_config.json
      vocab.txt

They may lie in a folder of the .zip, and be called bert_… as well; where more than one would do,
the user is asked.
"""

import contextlib
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lert_ds.convert.tensorflow_checkpoint import INDEX
from lert_ds.errors import ModelError, UserError
from lert_ds.files import inside
from lert_ds.model_source import PICKLED_WEIGHTS, SAFE_WEIGHTS

_OURS = {"tokenizer_config.json", "generation_config.json"}
_LARGEST_RATIO, _SMALL_BYTES = 200, 64 << 20
"""Of what a .zip may unpack to, to its own size; below so many bytes it may be anything."""


@dataclass(frozen=True)
class Choice:
    """What the user names where a source leaves it open."""

    checkpoint: str | None = None
    """Its name without `.index`, such as `model.ckpt-1000`."""
    configuration: Path | None = None
    vocabulary: Path | None = None


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint and what it needs beside it."""

    prefix: Path
    """Path of its files without `.index`."""
    configuration: Path
    vocabulary: Path


def is_checkpoint(source: Path, choice: Choice) -> bool:
    """Return whether `source` is of TensorFlow: a .zip, a prefix, or a folder that holds one.

    Raises:
        UserError: it is a folder that is both a model folder and a checkpoint's.
    """
    if source.is_file():
        return True  # a model is never one file; a wrong one is told by `open_source`
    if not source.is_dir():
        return _index_of(source).is_file()
    held = bool(_indexes(source) or _of(source, "*.ckpt*"))
    weights = [name for name in (*SAFE_WEIGHTS, *PICKLED_WEIGHTS) if (source / name).is_file()]
    if held and weights and choice.checkpoint is None:
        raise UserError(
            f"{source}: it holds both {weights[0]} and a TensorFlow checkpoint; name the one "
            "by --checkpoint, or move the model to a folder of its own"
        )
    return held


@contextlib.contextmanager
def open_source(source: Path, choice: Choice) -> Iterator[CheckpointFiles]:
    """Give the files of the checkpoint `source`; those of a .zip are there inside the `with`.

    They are unpacked below TMPDIR (/tmp), which needs room for them.

    Raises:
        ModelError: a file is missing, or the .zip cannot be read.
        UserError: several files would do, or the .zip is no archive that one should unpack.
    """
    if source.is_dir():
        yield _find(source, choice, str(source))
    elif not source.is_file() or source.name.endswith(INDEX):
        prefix = source.with_name(source.name.removesuffix(INDEX))
        yield _find(prefix.parent, Choice(prefix.name, choice.configuration, choice.vocabulary),
                    str(prefix.parent), deep=False)  # fmt: skip
    elif not zipfile.is_zipfile(source):
        raise ModelError(
            f"{source}: no .zip; name a folder, a .zip, or a checkpoint without its .index"
        )
    else:
        with tempfile.TemporaryDirectory(prefix="lert-ds-convert-") as name:
            _unpack(source, Path(name))
            yield _find(Path(name), choice, str(source))


def count_pieces(vocabulary: Path) -> int:
    """Return the lines of a vocab.txt as TensorFlow's BERT counts them: line feeds end them."""
    content = vocabulary.read_bytes()
    return content.count(b"\n") + bool(content and not content.endswith(b"\n"))


def _find(folder: Path, choice: Choice, told: str, *, deep: bool = True) -> CheckpointFiles:
    prefix = _prefix(folder, choice, told, deep=deep)
    near = prefix.parent
    configuration = choice.configuration or _one(
        [path for path in _of(near, "*config.json", deep=False) if path.name not in _OURS],
        told, "configuration (lert_config.json, bert_config.json)", "--config",
    )  # fmt: skip
    vocabulary = choice.vocabulary or _one(
        _of(near, "vocab*.txt", deep=False), told, "vocabulary (vocab.txt)", "--vocabulary"
    )
    for path in (configuration, vocabulary):
        if not path.is_file():
            raise ModelError(f"{path}: there is no such file; mend the path")
    return CheckpointFiles(prefix, configuration, vocabulary)


def _prefix(folder: Path, choice: Choice, told: str, *, deep: bool) -> Path:
    found = {path: path.with_name(path.name.removesuffix(INDEX)) for path in _indexes(folder, deep)}
    names = sorted(str(prefix.relative_to(folder)) for prefix in found.values())
    if choice.checkpoint is not None:
        wanted = choice.checkpoint.removesuffix(INDEX)
        chosen = [p for p in found.values() if wanted in (p.name, str(p.relative_to(folder)))]
        if len(chosen) == 1:
            return chosen[0]
        raise ModelError(
            f"{told}: {'more than one' if chosen else 'no'} checkpoint {wanted}"
            f" (there are: {', '.join(names) or 'none'}); name one of them"
        )
    if len(names) > 1:
        raise UserError(f"{told}: several checkpoints ({', '.join(names)}); choose by --checkpoint")
    if not names:
        raise ModelError(
            f"{told}: no TensorFlow checkpoint (no file {INDEX}, as lert_model.ckpt{INDEX}); "
            "copy or download it again"
        )
    return next(iter(found.values()))


def _one(found: list[Path], told: str, what: str, option: str) -> Path:
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(path.name for path in found)
        raise UserError(f"{told}: several files may be the {what}: {listed}; choose by {option}")
    raise ModelError(f"{told}: no {what} beside the checkpoint; name one by {option}")


def _index_of(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}{INDEX}")


def _indexes(folder: Path, deep: bool = True) -> list[Path]:
    return _of(folder, f"*{INDEX}", deep=deep)


def _of(folder: Path, form: str, *, deep: bool = True) -> list[Path]:
    """Return the files of a form; none hidden, as a Mac's attributes in an archive are."""
    found = folder.rglob(form) if deep else folder.glob(form)
    return sorted(
        path
        for path in found
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack what a conversion reads, and nothing that would leave `folder`."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [
                member
                for member in opened.infolist()
                if not member.is_dir()
                and re.search(r"(\.index|\.data-\d+-of-\d+|config\.json|\.txt)$", member.filename)
            ]
            total = sum(member.file_size for member in members)
            if total > max(_SMALL_BYTES, _LARGEST_RATIO * archive.stat().st_size):
                raise UserError(
                    f"{archive}: {archive.stat().st_size:,} bytes that unpack to {total:,}, which "
                    "is no checkpoint; unpack it by hand if you trust it, and name the folder"
                )
            for member in members:
                path = inside(folder, member.filename)
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as packed, path.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"{archive}: it cannot be unpacked ({error}); copy or download it again"
        ) from error
