"""Plain text to words with part of speech and entity tags by jieba: embedded, no download.

    小王在北京工作。  →  words 小王 在 北京 工作 。
                        pos   nh   p  ns   v    wp
                        ner   S-Nh O  S-Ns O    O

It approximates what LERT was trained on (LTP): tags are jieba's, mapped by `jieba_flags`; an entity
is one word, of the three kinds that jieba flags; there are no dependencies. Good for a first run
and for texts too large to parse; for the paper's data use the `ltp` annotator.

The words are those of `jieba.posseg.lcut`, found about five times as fast (its Viterbi asks every
pair of 256 states), except that
- a run of more than 24 unknown characters falls into characters (Viterbi would find no words in
  it, only cost time), as does a character that jieba's model has never seen;
- letters of other scripts join to words (café, 東京タワー's タワー, 한국), as tokenizers expect.
"""

import functools
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import jieba
import jieba.posseg

from lert_ds.corpus.annotators.jieba_flags import ltp_ner, ltp_pos
from lert_ds.corpus.annotators.viterbi import State, TagModel
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.text import is_blank, split_sentences
from lert_ds.errors import ConfigError
from lert_ds.labels import LTP_TAGS, TagSets

LONGEST_UNKNOWN_RUN = 24
"""Characters; real names and new words are shorter, mis-decoded text and lists of rare Han are
not."""

Flagged = tuple[str, str]
"""(word, jieba's flag)."""

_HAN = "\u4e00-\u9fd5"
_BLOCK = re.compile(rf"([{_HAN}a-zA-Z0-9+#&._]+)")  # what jieba looks up in its dictionary
_HAN_RUN = re.compile(f"([{_HAN}]+)")
_ASCII_RUN = re.compile(r"([.0-9]+|[a-zA-Z0-9]+)")
_FOREIGN_WORD = re.compile(
    # ASCII letters, then at least one letter or digit that is neither ASCII nor Han, then both.
    rf"(?<![a-zA-Z0-9])([a-zA-Z0-9]*+(?:(?![a-zA-Z0-9_\u3005-\u3007\u3021-\u3029\u3400-\u4dbf{_HAN}"
    r"\u9fd6-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])[\w\u0300-\u036f][a-zA-Z0-9]*+)++)"
)


class JiebaAnnotator:
    """Words, parts of speech and one-word entities by jieba; no dependencies."""

    def __init__(
        self,
        tag_sets: TagSets = LTP_TAGS,
        longest_sentence: int = 510,
        user_dictionary: Path | None = None,
    ) -> None:
        """Load the dictionary (about a second) and the user's words, if any.

        Args:
            tag_sets: kept as they are; `dep` stays, so that annotated text can join the corpus.
            longest_sentence: characters.
            user_dictionary: lines `word [frequency] [flag]`, UTF-8, jieba's own format.

        Raises:
            ConfigError: the user's dictionary cannot be read.
        """
        self.tag_sets = tag_sets
        self.counts: Counter[str] = Counter()
        self._longest_sentence = longest_sentence
        self._cutter = Cutter(user_dictionary)
        self._tag = functools.lru_cache(maxsize=1 << 19)(_ltp_tags)

    def sentences(self, text: str) -> list[str]:
        """Return the sentences of `text`, none longer than the limit; joined they are `text`."""
        return split_sentences(text, self._longest_sentence)

    def annotate(self, sentences: Iterable[tuple[int, str]]) -> Iterator[AnnotatedSentence]:
        """Yield each (document number, sentence) annotated, in order."""
        for document, text in sentences:
            words: list[str] = []
            pos: list[str | None] = []
            ner: list[str | None] = []
            for word, flag in self._cutter.cut(text):
                if flag == "x" and is_blank(word):
                    continue
                word_pos, word_ner = self._tag(word, flag)
                words.append(word)
                pos.append(word_pos)
                ner.append(word_ner)
            yield AnnotatedSentence(text=text, words=words, pos=pos, ner=ner, doc=document)


def _ltp_tags(word: str, flag: str) -> tuple[str, str]:
    return ltp_pos(word, flag), ltp_ner(flag)


class Cutter:
    """Cuts text into words with jieba's flags; the words joined are the text."""

    def __init__(self, user_dictionary: Path | None = None) -> None:
        """Read jieba's dictionary, then the user's.

        Raises:
            ConfigError: the user's dictionary cannot be read.
        """
        # Its progress is no news, and its cache is a world-writable file in /tmp: do without.
        jieba.setLogLevel(logging.WARNING)
        tokenizer = jieba.Tokenizer()
        tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
        tokenizer.initialized = True
        if user_dictionary is not None:
            _load_user_dictionary(tokenizer, user_dictionary)
        flagger = jieba.posseg.POSTokenizer(tokenizer)
        flagger.makesure_userdict_loaded()
        self._flags: dict[str, str] = flagger.word_tag_tab
        # The start of a word that is no word itself has frequency 0: probable never.
        log_total = math.log(tokenizer.total)
        self._log_unknown = math.log(1) - log_total
        self._log_probability: dict[str, float] = {
            word: math.log(frequency) - log_total if frequency else -math.inf
            for word, frequency in tokenizer.FREQ.items()
        }
        self._model = TagModel(
            jieba.posseg.char_state_tab_P,
            jieba.posseg.start_P,
            jieba.posseg.trans_P,
            jieba.posseg.emit_P,
        )
        self._cut_unknown = functools.lru_cache(maxsize=1 << 17)(self._cut_unknown_run)

    def cut(self, text: str) -> list[Flagged]:
        """Return the words of `text` with their flags; joined they are `text`."""
        words: list[Flagged] = []
        for number, part in enumerate(_FOREIGN_WORD.split(text)):
            if number % 2:
                words.append((part, "x"))
                continue
            for inner_number, block in enumerate(_BLOCK.split(part)):
                if inner_number % 2:
                    self._cut_block(block, words)
                else:
                    words.extend((character, "x") for character in block)
        return words

    def _cut_block(self, block: str, words: list[Flagged]) -> None:
        """Append the words of a run of Han and ASCII characters."""
        flags = self._flags
        unknown_from = start = 0
        for end in self._best_ends(block):
            if end - start > 1:
                if unknown_from < start:
                    words.extend(self._cut_singles(block[unknown_from:start]))
                word = block[start:end]
                words.append((word, flags.get(word, "x")))
                unknown_from = end
            start = end
        if unknown_from < start:
            words.extend(self._cut_singles(block[unknown_from:start]))

    def _best_ends(self, block: str) -> Iterator[int]:
        """Yield where each word ends on the most probable path through the dictionary."""
        lookup = self._log_probability.get
        length = len(block)
        score = [0.0] * (length + 1)  # of the best path from here to the end
        best_end = [0] * length
        for start in range(length - 1, -1, -1):
            best = -math.inf
            end = best_end[start] = start + 1
            probability = lookup(block[start])
            while probability is not None:
                candidate = probability + score[end]
                if candidate >= best:  # of equals the longer word
                    best = candidate
                    best_end[start] = end
                end += 1
                if end > length:
                    break
                probability = lookup(block[start:end])
            if best == -math.inf:
                best = self._log_unknown + score[start + 1]
                best_end[start] = start + 1
            score[start] = best
        start = 0
        while start < length:
            start = best_end[start]
            yield start

    def _cut_singles(self, run: str) -> Iterable[Flagged]:
        """Return the words of neighbours that the dictionary left single."""
        if len(run) > 1 and not self._is_word(run):
            return self._cut_unknown(run)
        return [(character, self._flags.get(character, "x")) for character in run]

    def _is_word(self, text: str) -> bool:
        return self._log_probability.get(text, -math.inf) > -math.inf

    def _cut_unknown_run(self, run: str) -> tuple[Flagged, ...]:
        """Return the words that the hidden Markov model finds in a run of single characters."""
        words: list[Flagged] = []
        for number, part in enumerate(_HAN_RUN.split(run)):
            if number % 2:
                words.extend(self._cut_unknown_han(part))
            else:
                pieces = (piece for piece in _ASCII_RUN.split(part) if piece)
                words.extend((piece, _ascii_flag(piece)) for piece in pieces)
        return tuple(words)

    def _cut_unknown_han(self, run: str) -> Iterator[Flagged]:
        if len(run) > LONGEST_UNKNOWN_RUN:
            yield from ((character, self._flags.get(character, "x")) for character in run)
            return
        start = 0
        for place, character in enumerate(run):
            if not self._model.knows(character):
                yield from _words_of_path(run[start:place], self._model)
                yield character, self._flags.get(character, "x")
                start = place + 1
        yield from _words_of_path(run[start:], self._model)


def _words_of_path(run: str, model: TagModel) -> Iterator[Flagged]:
    if not run:
        return
    path: list[State] = model.best_path(run)
    start = 0
    for place, (part, flag) in enumerate(path):
        if part in "ES":
            yield run[start : place + 1], flag
            start = place + 1
    if start < len(run):
        yield run[start:], path[start][1]


def _ascii_flag(piece: str) -> str:
    first = piece[0]
    if first in ".0123456789":
        return "m"
    return "eng" if first.isalnum() else "x"


def _load_user_dictionary(tokenizer: jieba.Tokenizer, path: Path) -> None:
    try:
        with path.open("rb") as file:
            tokenizer.load_userdict(file)
    except OSError as error:
        raise ConfigError(f"user_dictionary = {path}: {error.strerror}; name a file") from error
    except ValueError as error:
        raise ConfigError(
            f"user_dictionary = {path}: {error}; write `word [frequency] [flag]` a line, in UTF-8"
        ) from error
