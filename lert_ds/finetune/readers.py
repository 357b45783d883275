"""Files of tasks to examples, a function a layout; what is wrong is told with its line.

read_texts      a table or JSON lines: text, pair, label
read_entities   a token and its tag a line, a blank line after each sentence
read_spans      SQuAD's JSON, or that of CMRC 2018's own data
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lert_ds.errors import UserError
from lert_ds.finetune import text_files
from lert_ds.finetune.examples import Answer, EntityExample, SpanExample, TextExample

logger = logging.getLogger(__name__)

LABEL, TEXT, PAIR, LANGUAGE = "label", "text", "pair", "?language"


@dataclass(frozen=True)
class TextLayout:
    """How the table of a classification task looks."""

    fields: Mapping[str, Sequence[str]]
    """TEXT, LABEL and perhaps PAIR to the names that they go by in one file or another."""
    order: Sequence[str]
    """These in the order of the columns, where a file has no header."""
    spellings: Mapping[str, str] = field(default_factory=dict)
    """Labels that are spelt otherwise in some file."""
    undecided: str | None = None
    """The label of what its annotators did not agree on: left out, and counted."""
    language: str | None = None
    """Where a file is of many languages, ours."""


def read_texts(path: Path, labels: Sequence[str], layout: TextLayout) -> list[TextExample]:
    """Return the examples of a classification task.

    Raises:
        UserError: a line lacks a field or has a label that is none of `labels`.
    """
    classes = {label: number for number, label in enumerate(labels)}
    examples, undecided = [], 0
    for number, row in text_files.rows(
        path, {**layout.fields, LANGUAGE: ("language",)}, layout.order
    ):
        if row[LANGUAGE] not in (None, layout.language):
            continue
        label = (row[LABEL] or "").strip()
        label = layout.spellings.get(label, label)
        if label == layout.undecided:
            undecided += 1
            continue
        if label not in classes:
            raise UserError(
                f"{path}: line {number} has the label {label!r}, which is none of "
                f"{', '.join(labels)}; correct it, or is it another task's file?"
            )
        examples.append(TextExample(row[TEXT] or "", row.get(PAIR), classes[label]))
    if undecided:
        logger.info("%s: %d examples of no agreed label are left out", path, undecided)
    return examples


def read_entities(path: Path, labels: Sequence[str]) -> list[EntityExample]:
    """Return the sentences of a file with a token and its tag a line.

    Raises:
        UserError: a line that has no tag, or one that is none of `labels`.
    """
    classes = {label: number for number, label in enumerate(labels)}
    examples: list[EntityExample] = []
    tokens: list[str] = []
    tags: list[int] = []
    for number, line in enumerate([*text_files.read(path).split("\n"), ""], 1):
        parts = line.split()
        if not parts:
            if tokens:
                examples.append(EntityExample(tuple(tokens), tuple(tags)))
                tokens, tags = [], []
            continue
        if len(parts) == 1 and line[:1].isspace():  # the token is a blank itself
            parts.insert(0, line[0])
        if len(parts) != 2:
            raise UserError(
                f"{path}: line {number} is {line!r}; a token, a blank and its tag are needed"
            )
        if parts[1] not in classes:
            raise UserError(
                f"{path}: line {number} has the tag {parts[1]!r}, which is none of "
                f"{', '.join(labels)}; correct it, or is it another task's file?"
            )
        tokens.append(parts[0])
        tags.append(classes[parts[1]])
    return examples


def read_spans(path: Path) -> list[SpanExample]:
    """Return the questions of a file in the layout of SQuAD, or of CMRC 2018's own data.

    A start that a file has wrong is mended where the answer stands elsewhere in the context: the
    nearest such place is taken. How many were, is told.

    Raises:
        UserError: it has another layout, or a question without an answer.
    """
    tree = text_files.json_of(path)
    try:
        questions = list(
            _cmrc_questions(tree) if isinstance(tree, list) else _squad_questions(tree)
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: neither in SQuAD's layout nor in CMRC 2018's ({error!r}); is it the right "
            "file?"
        ) from error
    examples, mended = [], 0
    for identity, question, context, given in questions:
        if not given:
            raise UserError(f"{path}: the question {identity} has no answer; take it out")
        answers = [_placed(context, text, start) for text, start in given]
        mended += sum(
            a.start is not None and start not in (None, a.start)
            for a, (_, start) in zip(answers, given, strict=True)
        )
        examples.append(SpanExample(identity, question, context, tuple(answers)))
    if mended:
        logger.info("%s: %d answers stand elsewhere than the file says; mended", path, mended)
    return examples


def refuse_unplaced(path: Path, examples: Sequence[SpanExample]) -> None:
    """Refuse a question to train on whose answer its context does not hold.

    Raises:
        UserError: names the question.
    """
    for example in examples:
        if all(answer.start is None for answer in example.answers):
            raise UserError(
                f"{path}: the question {example.identity} has the answer "
                f"{example.answers[0].text!r}, which its context does not hold; correct it or take "
                "it out"
            )


_Question = tuple[str, str, str, list[tuple[str, int | None]]]


def _squad_questions(tree: Any) -> Iterator[_Question]:
    for article in tree["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                answers: list[tuple[str, int | None]] = [
                    (str(answer["text"]), int(answer["answer_start"]))
                    for answer in entry["answers"]
                ]
                identity = str(entry["id"]).strip()
                yield identity, _text(entry["question"]), _text(paragraph["context"]), answers


def _cmrc_questions(tree: Any) -> Iterator[_Question]:
    for article in tree:
        for entry in article["qas"]:
            answers: list[tuple[str, int | None]] = [(str(a), None) for a in entry["answers"]]
            identity = str(entry["query_id"]).strip()
            yield identity, _text(entry["query_text"]), _text(article["context_text"]), answers


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a text is needed")
    return value


def _placed(context: str, text: str, start: int | None) -> Answer:
    if start is not None and start >= 0 and context.startswith(text, start):
        return Answer(text, start)
    places = [at for at in range(len(context)) if context.startswith(text, at)] if text else []
    if not places:
        return Answer(text, None)
    return Answer(text, min(places, key=lambda at: abs(at - (start or 0))))
