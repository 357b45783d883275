"""Text to words, for tagging: by a segmenter, or by what can be seen in the text itself.

    jieba       今天天气很好。       →  今天 天气 很 好 。     embedded, the default
    ltp:MODEL   the same by LTP, whose words LERT was trained on; MODEL a folder or a hub name
    space       今天 天气 很 好 。   →  as they are parted
    character   3月GDP增长           →  3 月 GDP 增 长       Han characters, runs of letters, marks

The last two need no library, so that a device that runs graphs alone can use them.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from lert_ds.corpus.text import plain_words
from lert_ds.errors import UserError
from lert_ds.tagging import Words

DEFAULT_LTP_MODEL = "LTP/small"
NAMES = "jieba, ltp, ltp:MODEL, space or character"

Splitter = Callable[[Sequence[str]], list[Words]]
"""Texts to their words."""


def make_splitter(name: str) -> Splitter:
    """Return what splits texts into words.

    Args:
        name: `jieba`, `ltp`, `ltp:MODEL`, `space` or `character`.

    Raises:
        UserError: there is none of this name, or what it needs is not installed.
    """
    kind, colon, model = name.partition(":")
    if name == "space":
        return _each(str.split)
    if name == "character":
        return _each(plain_words)
    if name == "jieba":
        return _annotator_words("jieba", None)
    if kind == "ltp" and bool(colon) == bool(model):
        return _annotator_words("ltp", model or DEFAULT_LTP_MODEL)
    raise UserError(f"--words {name}: there is no such way to split text; say {NAMES}")


def _each(split: Callable[[str], list[str]]) -> Splitter:
    return lambda texts: [Words(text, split(text)) for text in texts]


def _annotator_words(kind: Literal["jieba", "ltp"], model: str | None) -> Splitter:
    """Return the words of an annotator of `prepare`; its tags are not looked at."""
    try:
        from lert_ds.corpus.annotate import AnnotatorConfig, make_annotator

        config = AnnotatorConfig(kind=kind, model=model)
        annotator = make_annotator(config, {"pos": (), "ner": (), "dep": ()})
    except ModuleNotFoundError as error:
        if error.name not in (kind, "pydantic", "orjson"):
            raise
        raise UserError(
            f"--words {kind}: {error.name} is not installed; say pip install {error.name}, or "
            "--words space for a text with spaces between its words, or --words character"
        ) from error

    def split(texts: Sequence[str]) -> list[Words]:
        words: list[list[str]] = [[] for _ in texts]
        sentences = (
            (number, sentence)
            for number, text in enumerate(texts)
            for sentence in annotator.sentences(text)
        )
        for annotated in annotator.annotate(sentences):
            words[annotated.doc] += annotated.words
        return [Words(text, own) for text, own in zip(texts, words, strict=True)]

    return split
