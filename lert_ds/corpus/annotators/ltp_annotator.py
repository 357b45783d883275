"""Plain text to words with parts of speech, entities and dependencies by LTP, the paper's tool.

    他来北京。  →  words 他  来  北京 。
                  pos   r   v   ns   wp
                  ner   O   O   S-Ns O
                  dep   SBV HED VOB  WP

Sentences are read ahead, sorted by length and parsed in batches of about equal lengths; they come
out in the order they came in. LTP is free for research and paid for commerce: see its licence.
What it cannot do is counted, by reason, and never stops a run:
- a parse that is no tree with one root: the dependency labels of that sentence are None;
- a sentence too long for the model, or too large for the memory even alone: its words are Han
  characters and runs of letters, without any tags, for masking alone.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch

from lert_ds.corpus.annotators.ltp_models import LtpModel, Parsed, load_ltp
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.text import is_blank, plain_words, split_sentences, trim_blank
from lert_ds.labels import LTP_TAGS, TagSets

_LOG = logging.getLogger(__name__)
TOKENS_PER_BATCH = {"cuda": 16_384, "cpu": 1024}
"""On one core twice as fast as a sentence at a time; 16,384 tokens there are slower than that,
because they leave the caches and, of few sentences, pad more (benchmarks/ltp_batches.py)."""
_BATCHES_AHEAD = 16
"""Read ahead that many batches: sorting more sentences saves little more padding."""
_SPECIAL_TOKENS = 2  # [CLS] and [SEP]
_MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")

Numbered = tuple[int, str]
"""(document number, sentence)."""


class LtpAnnotator:
    """Words, parts of speech, entities and, by a neural model, dependencies."""

    def __init__(
        self,
        model: str,
        tag_sets: TagSets = LTP_TAGS,
        *,
        device: str = "auto",
        tokens_per_batch: int | None = None,
        longest_sentence: int = 510,
    ) -> None:
        """Load the model, from the hub where it is no local folder.

        Args:
            model: folder or hub name.
            tag_sets: the tags wanted.
            device: auto (a GPU when there is one), cpu, cuda or cuda:N.
            tokens_per_batch: padding included; by default `TOKENS_PER_BATCH` of the device.
            longest_sentence: characters.

        Raises:
            UserError: the package, the model, its weights, the network or the GPU is missing.
        """
        self.tag_sets = tag_sets
        self.counts: Counter[str] = Counter()
        self._model: LtpModel = load_ltp(model, device)
        on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        self._tokens_per_batch = tokens_per_batch or TOKENS_PER_BATCH["cuda" if on_gpu else "cpu"]
        self._longest_sentence = min(longest_sentence, self._model.longest)

    def sentences(self, text: str) -> list[str]:
        """Return the sentences of `text`, none longer than the model takes; joined they are it."""
        return [
            piece
            for sentence in split_sentences(text, self._longest_sentence)
            for piece in _split_by_tokens(sentence, self._model.longest)
        ]

    def annotate(self, sentences: Iterable[Numbered]) -> Iterator[AnnotatedSentence]:
        """Yield each (document number, sentence) annotated, in order; reads 16 batches ahead."""
        for window in self._windows(sentences):
            parsed = self._parse_window([text for _, text in window])
            for (document, text), parse in zip(window, parsed, strict=True):
                yield self._as_sentence(document, text, parse)

    def _windows(self, sentences: Iterable[Numbered]) -> Iterator[list[Numbered]]:
        window: list[Numbered] = []
        characters = 0
        for sentence in sentences:
            window.append(sentence)
            characters += len(sentence[1]) + _SPECIAL_TOKENS
            if characters >= _BATCHES_AHEAD * self._tokens_per_batch:
                yield window
                window, characters = [], 0
        if window:
            yield window

    def _parse_window(self, texts: list[str]) -> list[Parsed | None]:
        """Return each text parsed, or None where it cannot be."""
        tokens = self._model.count_tokens(texts)
        order: list[int] = []
        for place in sorted(range(len(texts)), key=tokens.__getitem__):
            if tokens[place] > self._model.longest:
                self.counts["sentence longer than the model takes: words without tags"] += 1
            elif tokens[place]:
                order.append(place)
        parsed: list[Parsed | None] = [None] * len(texts)
        start = 0
        while start < len(order):
            end = start + 1
            while end < len(order) and self._fits(end + 1 - start, tokens[order[end]]):
                end += 1
            batch = order[start:end]
            results = self._parse([texts[place] for place in batch])
            if results is None and len(batch) > 1:
                # The batches to come are as large: halve them all, or each would fail once.
                self._tokens_per_batch = len(batch) // 2 * (tokens[batch[-1]] + _SPECIAL_TOKENS)
                _LOG.warning("out of memory: now %d tokens a batch", self._tokens_per_batch)
                continue
            if results is None:
                self.counts["sentence that memory does not hold: words without tags"] += 1
                results = [None]
            for place, result in zip(batch, results, strict=True):
                parsed[place] = result
            start = end
        return parsed

    def _fits(self, sentences: int, longest: int) -> bool:
        return sentences * (longest + _SPECIAL_TOKENS) <= self._tokens_per_batch

    def _parse(self, batch: Sequence[str]) -> Sequence[Parsed | None] | None:
        """Return a batch parsed, or None when memory does not hold it."""
        try:
            return self._model.parse(batch)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        # Here the traceback, and with it the batch's tensors, is gone.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _as_sentence(self, document: int, text: str, parse: Parsed | None) -> AnnotatedSentence:
        placed = place_words(text, parse.words) if parse is not None else None
        if parse is None or placed is None:
            words = plain_words(text)
            if words and parse is not None:
                self.counts["words that do not stand in the sentence: words without tags"] += 1
            return AnnotatedSentence(text=text, words=words, doc=document)
        keep = [index for index, _ in placed]
        relations: list[str | None] | None = None
        if parse.relations is not None and parse.heads is not None:
            problem = find_parse_problem(parse.heads)
            if problem is not None:
                self.counts[f"parse with {problem}: no dependencies"] += 1
            relations = [None if problem else parse.relations[index] for index in keep]
        return AnnotatedSentence(
            text=text,
            words=[word for _, word in placed],
            pos=[parse.pos[index] for index in keep] if parse.pos is not None else None,
            ner=[parse.ner[index] for index in keep] if parse.ner is not None else None,
            dep=relations,
            doc=document,
        )


def place_words(text: str, words: Sequence[str]) -> list[tuple[int, str]] | None:
    """Return (index, word) of LTP's words as they stand in `text`, or None when they do not.

    LTP glues white space to a word's end and drops characters at the start of a text: white
    space is cut off, other characters join the next word, so that nothing but blank characters
    lies between words. A word of blank characters alone is left out.
    """
    spans: list[tuple[int, int]] = []
    at = 0
    for word in words:
        start = text.find(word, at)
        if start < 0:
            return None
        spans.append((at, start + len(word)))
        at = start + len(word)
    if not spans:
        return None
    if not is_blank(text[at:]):
        spans[-1] = (spans[-1][0], len(text))
    trimmed = (trim_blank(text, start, end) for start, end in spans)
    return [(index, text[start:end]) for index, (start, end) in enumerate(trimmed) if start < end]


def find_parse_problem(heads: Sequence[int]) -> str | None:
    """Return what keeps the heads (from 1; 0 for a root) from being a tree with one root."""
    if any(not 0 <= head <= len(heads) for head in heads):
        return "a head outside the sentence"
    roots = sum(head == 0 for head in heads)
    if roots != 1:
        return "no root" if not roots else "several roots"
    reaches_root = [True] + [False] * len(heads)
    for word in range(1, len(heads) + 1):
        path: list[int] = []
        above = word
        while not reaches_root[above]:
            if len(path) > len(heads):
                return "a cycle"
            path.append(above)
            above = heads[above - 1]
        for passed in path:
            reaches_root[passed] = True
    return None


def _split_by_tokens(sentence: str, longest: int) -> list[str]:
    """Return pieces of at most `longest` tokens each.

    A character is one WordPiece at most once it is decomposed (a Hangul syllable is up to three).
    """
    decomposed = (
        len(sentence) if sentence.isascii() else len(unicodedata.normalize("NFD", sentence))
    )
    if decomposed <= longest or len(sentence) == 1:
        return [sentence]
    limit = max(1, min(len(sentence) - 1, len(sentence) * longest // decomposed))
    return [
        piece
        for part in split_sentences(sentence, limit)
        for piece in _split_by_tokens(part, longest)
    ]


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error).lower()
    return any(text in message for text in _MEMORY_MESSAGES)
