"""Which pieces of a vocabulary stay: counted over text, with all that the text may fall back to.

    今天 Bug ×3, 铩 ×0  →  [PAD] … [MASK]  0-9 ##0-##9  a-z ##a-##z  ，。…  今 天 bug   without 铩

A dropped piece of a Latin word leaves the word to smaller pieces; a dropped character leaves [UNK].
"""

import itertools
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from lert_ds import tokenizer_files
from lert_ds.config import Config, Names, Paths
from lert_ds.data.shards import Corpus
from lert_ds.errors import ConfigError
from lert_ds.vocabulary_view import in_vocabulary_of
from prune.vocabulary import pruned_tokenizer
from prune.vocabulary.coverage import Coverage, measure
from prune.vocabulary.texts import (
    CONTINUES,
    batches,
    count_ids,
    id_count,
    read_instances,
    read_lines,
    split_sentences,
    tokenize,
)

Counts = npt.NDArray[np.int64]


def _is_digit(body: str) -> bool:
    return len(body) == 1 and body in string.digits


def _is_latin_letter(body: str) -> bool:
    return len(body) == 1 and body in string.ascii_letters


def _is_latin(body: str) -> bool:
    return body.isascii() and body.isalpha()


def _is_mark(body: str) -> bool:
    # As BERT's pre-tokenizer has it: what Unicode calls punctuation, and ASCII's symbols.
    return len(body) == 1 and (body in string.punctuation or unicodedata.category(body)[0] == "P")


GROUPS: dict[str, Callable[[str], bool]] = {
    "digits": _is_digit,
    "latin_letters": _is_latin_letter,
    "latin_pieces": _is_latin,
    "marks": _is_mark,
}
"""Name of a group to whether a piece, without its ##, is in it."""


class VocabularyConfig(Config):
    """Which pieces stay, and the held-out text that tells what it costs."""

    input: Paths = ()
    """UTF-8 text files whose pieces are counted."""
    corpus: Paths = ()
    """Corpus folders whose pieces are counted, beside those of input."""
    minimum_count: int = Field(1, ge=1)
    """Rarer pieces go."""
    size: int | None = Field(None, ge=1)
    """Most pieces that stay, the most frequent; null: all that minimum_count leaves."""
    keep_groups: tuple[Literal["digits", "latin_letters", "latin_pieces", "marks"], ...] = (
        "digits",
        "latin_letters",
        "marks",
    )
    """Pieces that stay without being counted, ## forms too; latin_pieces are all of Latin words."""
    keep: Names = ()
    """More pieces that stay."""
    keep_file: Path | None = None
    """A UTF-8 file of pieces that stay, one a line."""
    input_valid: Paths = ()
    """UTF-8 text files on which the coverage is measured."""
    corpus_valid: Paths = ()
    """Corpus folders on which the coverage is measured, beside input_valid."""


@dataclass(frozen=True)
class PrunedVocabulary:
    """What `prune_vocabulary` chose."""

    pieces: Tensor
    """int64 [kept]: ids of the whole vocabulary, rising; `pieces[i]` is now i."""
    coverage: Coverage | None
    """None where no held-out text was named."""


def prune_vocabulary(
    source: Path, config: VocabularyConfig, target: Path, counts: Counts | None = None
) -> PrunedVocabulary:
    """Choose the pieces that stay, write the tokenizer of them to `target`, measure the coverage.

    Args:
        source: A model folder, whose tokenizer is pruned.
        config: Says by which text.
        target: Folder that `lert_ds.model_dir.save` takes as `tokenizer_folder`.
        counts: Those of `count`, where they are known already.

    Raises:
        ConfigError: of `config`; see `count` and `choose`.
        ModelError: no tokenizer, or the tokenizer of a corpus is another.
    """
    tokenizer = tokenizer_files.load(source)
    # What is wrong with these is told before the counting, which may take long.
    must_keep(tokenizer, config)
    held_out = _held_out(source, tokenizer, config)
    pieces = choose(tokenizer, count(source, config) if counts is None else counts, config)
    pruned = pruned_tokenizer.save(source, pieces, target)
    coverage = None if held_out is None else measure(tokenizer, pruned, pieces, held_out)
    return PrunedVocabulary(pieces, coverage)


def count(source: Path, config: VocabularyConfig) -> Counts:
    """Return how often each piece occurs, int64 [largest id + 1].

    Raises:
        ConfigError: neither input nor corpus is named, or a file is not there, not UTF-8 or empty.
        CorpusError: a corpus cannot be read.
        ModelError: no tokenizer in `source`, or the tokenizer of a corpus is another.
    """
    if not config.input and not config.corpus:
        raise ConfigError(
            "input = [] and corpus = []: name text files or corpus folders to count pieces in"
        )
    tokenizer = tokenizer_files.load(source)
    _held_out(source, tokenizer, config)  # what is wrong with it is told before the long counting
    size = id_count(tokenizer)
    counts = np.zeros(size, np.int64)
    lines = read_lines(config.input, "input") if config.input else iter(())
    if config.corpus:
        corpus = _open(source, config.corpus)
        for rows in batches(corpus[index].input_ids for index in range(len(corpus))):
            counts += np.bincount(np.concatenate(rows), minlength=size)
    for batch in batches(lines):
        counts += count_ids(tokenize(tokenizer, batch), size)
    return counts


def choose(tokenizer: Any, counts: Counts, config: VocabularyConfig) -> Tensor:
    """Return the ids that stay, int64 [kept], rising: what `Cut.pieces` takes.

    They are those of `must_keep`, then piece after piece, the most frequent first, each with the
    characters that it is made of. A larger `size` keeps all that a smaller one does.

    Args:
        tokenizer: Of the whole vocabulary.
        counts: int64 [largest id + 1].
        config: The rules.

    Raises:
        ConfigError: see `must_keep`.
    """
    kept = must_keep(tokenizer, config)
    alphabet = _Alphabet(tokenizer)
    limit = config.size or len(counts)
    names = tokenizer.convert_ids_to_tokens(range(len(counts)))
    for number in np.argsort(-counts, kind="stable").tolist():
        if counts[number] < config.minimum_count:
            break
        if number in kept:
            continue
        more = {number, *alphabet.of(names[number])} - kept
        if len(kept) + len(more) > limit:
            break
        kept |= more
    return torch.tensor(sorted(kept), dtype=torch.int64)


def must_keep(tokenizer: Any, config: VocabularyConfig) -> set[int]:
    """Return the ids that stay whatever the counts.

    They are the special and added tokens, the groups, the pieces named, and their characters.

    Raises:
        ConfigError: keep or keep_file names what is no piece, keep_file cannot be read, or size is
            smaller than what must stay.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    alphabet = _Alphabet(tokenizer)
    kept = pruned_tokenizer.always_kept(tokenizer)
    for group in config.keep_groups:
        kept |= {
            number
            for piece, number in vocabulary.items()
            if GROUPS[group](_body(piece)) and alphabet.is_reachable(piece)
        }
    named = list(_named(tokenizer, config))
    kept |= {vocabulary[piece] for piece in named}
    for piece in tokenizer.convert_ids_to_tokens(
        sorted(kept - pruned_tokenizer.always_kept(tokenizer))
    ):
        kept.update(alphabet.of(piece))
    if config.size is not None and config.size <= len(pruned_tokenizer.always_kept(tokenizer)):
        raise ConfigError(
            f"vocabulary.size = {config.size}: special tokens take all of them, and no piece would "
            "be left; raise it"
        )
    if config.size is not None and len(kept) > config.size:
        raise ConfigError(
            f"vocabulary.size = {config.size}: special tokens, keep_groups, keep and keep_file "
            f"take {len(kept)} pieces; raise size to {len(kept)} or more, or keep fewer"
        )
    return kept


class _Alphabet:
    """The single characters that a piece's words are spelled with where no longer piece fits."""

    def __init__(self, tokenizer: Any) -> None:
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        backend = tokenizer.backend_tokenizer
        self._normalize: Callable[[str], str] = backend.normalizer.normalize_str
        self._split: Callable[[str], list[tuple[str, Any]]] = backend.pre_tokenizer.pre_tokenize_str
        self._known: dict[str, tuple[int, ...]] = {}

    def of(self, piece: str) -> Iterator[int]:
        """Yield the ids of the characters of `piece`, as they open a word and as they go on."""
        if not self.is_reachable(piece):
            return  # such as [unused1]
        for character in _body(piece):
            if character not in self._known:
                self._known[character] = tuple(
                    self._vocabulary[form]
                    for form in (character, CONTINUES + character)
                    if form in self._vocabulary and self.is_reachable(form)
                )
            yield from self._known[character]

    def is_reachable(self, piece: str) -> bool:
        """Return whether any text can have this piece: no Han character goes on with a word."""
        body = _body(piece)
        # "a" is a letter to every normalizer of BERT's: what goes on with it goes on with a word.
        word = body if body == piece else f"a{body}"
        return [part for part, _ in self._split(self._normalize(word))] == [word]


def _body(piece: str) -> str:
    """Return the characters that a piece stands for."""
    return piece.removeprefix(CONTINUES) if len(piece) > len(CONTINUES) else piece


def _named(tokenizer: Any, config: VocabularyConfig) -> Iterator[str]:
    """Yield the pieces of keep and keep_file."""
    places = [(f"vocabulary.keep = {piece!r}", piece) for piece in config.keep]
    if config.keep_file is not None:
        places += [
            (f"vocabulary.keep_file = {config.keep_file}: {piece!r}", piece)
            for piece in read_lines([config.keep_file], "keep_file")
        ]
    vocabulary = tokenizer.get_vocab()
    for place, piece in places:
        if piece not in vocabulary:
            cut = ", ".join(tokenizer.tokenize(piece)) or "none"
            raise ConfigError(
                f"{place} is no piece of the tokenizer, which cuts it into {cut}; name those"
            )
        yield piece


def _held_out(source: Path, tokenizer: Any, config: VocabularyConfig) -> Iterator[str] | None:
    """Return the held-out sentences, or None where none are named; files and folders are opened."""
    texts: list[Iterator[str]] = []
    if config.input_valid:
        texts.append(read_lines(config.input_valid, "input_valid"))
    if config.corpus_valid:
        texts.append(read_instances(_open(source, config.corpus_valid), tokenizer))
    return split_sentences(itertools.chain(*texts)) if texts else None


def _open(source: Path, folders: Sequence[Path]) -> Corpus:
    return in_vocabulary_of(Corpus(folders), source)
