"""Examples of the three kinds of tasks, as they stand in their owners' files."""

from typing import NamedTuple


class TextExample(NamedTuple):
    """A sentence or a pair of them, and its class."""

    text: str
    pair: str | None
    label: int


class EntityExample(NamedTuple):
    """A sentence, character by character (words of Latin letters may stay whole), and its tags."""

    tokens: tuple[str, ...]
    tags: tuple[int, ...]


class Answer(NamedTuple):
    """One of the right answers to a question."""

    text: str
    start: int | None
    """Where it stands in the context, in characters; None where it does not stand there."""


class SpanExample(NamedTuple):
    """A question about a context that holds its answer."""

    identity: str
    question: str
    context: str
    answers: tuple[Answer, ...]


Example = TextExample | EntityExample | SpanExample
