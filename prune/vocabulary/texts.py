"""Plain text for the vocabulary: lines of files, what an instance of a corpus says, sentences."""

import importlib.resources
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lert_ds.data.shards import Corpus
from lert_ds.errors import ConfigError

CONTINUES = "##"
"""Opens a piece that goes on with a word."""
BATCH_SIZE = 1000
_SAMPLE_TEXT = "samples/prose.txt"

T = TypeVar("T")

_SENTENCE_END = re.compile(r"(?<=[。！？；!?])|\n")


def read_lines(files: Sequence[Path], key: str) -> Iterator[str]:
    """Return the lines of UTF-8 text files that are not blank, read as they are asked for.

    Args:
        files: One after the other, a line in memory at a time.
        key: Of the configuration, for the message of an error.

    Raises:
        ConfigError: a file is not there; while reading, one is not UTF-8, or all are blank.
    """
    for path in files:
        if not path.is_file():
            raise ConfigError(f"{key} = {path}: there is no such file; name a UTF-8 text file")
    return _lines(files, key)


def read_text(path: Path | None) -> str:
    """Return what stands in a UTF-8 text file, or in the package's sample where none is named.

    Raises:
        ConfigError: as `read_lines` does, of the key `text`.
    """
    if path is not None:
        return "\n".join(read_lines((path,), "text"))
    return (importlib.resources.files("lert_ds") / _SAMPLE_TEXT).read_text("utf-8")


def read_instances(corpus: Corpus, tokenizer: Any) -> Iterator[str]:
    """Yield each instance of a corpus as text that gives the same pieces again.

    It is normalized text with a space between words; [UNK] stands where it stood.
    """
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for index in range(len(corpus)):
        ids = [number for number in corpus[index].input_ids.tolist() if number not in special]
        yield join_pieces(tokenizer.convert_ids_to_tokens(ids))


def join_pieces(pieces: Iterable[str]) -> str:
    """Return the words of `pieces`, with a space between two."""
    return re.sub(rf" {CONTINUES}(?=\S)", "", " ".join(pieces))


def split_sentences(texts: Iterable[str]) -> Iterator[str]:
    """Yield the sentences of `texts`, each with the mark that ends it; blank ones left out."""
    for text in texts:
        yield from filter(None, map(str.strip, _SENTENCE_END.split(text)))


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield `items` in lists of BATCH_SIZE; the last one may be shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, BATCH_SIZE)):
        yield batch


def tokenize(tokenizer: Any, batch: list[str]) -> list[list[int]]:
    """Return the ids of each text, without [CLS] and [SEP]."""
    # Not verbose: it would warn of texts longer than the model takes.
    ids: list[list[int]] = tokenizer(
        batch,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return ids


def count_ids(texts: Iterable[Iterable[int]], size: int) -> npt.NDArray[np.int64]:
    """Return how often each id below `size` stands in `texts`, int64 [size]."""
    ids = np.fromiter(itertools.chain.from_iterable(texts), np.int64)
    return np.bincount(ids, minlength=size)


def id_count(tokenizer: Any) -> int:
    """Return the largest id plus one; an added token may stand behind a gap."""
    return int(max(tokenizer.get_vocab().values())) + 1


def _lines(files: Sequence[Path], key: str) -> Iterator[str]:
    empty = True
    for path in files:
        # Lines end at \n alone, and are decoded one by one so that the message can name the line.
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8").strip()
                except UnicodeDecodeError as error:
                    raise ConfigError(
                        f"{key} = {path}: line {number} is not UTF-8; "
                        "unpack it if it is packed, else convert it to UTF-8"
                    ) from error
                if text:
                    empty = False
                    yield text
    if empty:
        raise ConfigError(f"{key} = {', '.join(map(str, files))}: there is no text in it")
