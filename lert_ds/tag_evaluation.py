"""How well a model tags words: its tags beside those of annotated sentences.

    gold        今天/nt 天气/n 很/d 好/a        task  words  accuracy  macro-F1  left out
    predicted   今天/nt 天气/n 很/d 好/v   →    pos       4    75.0 %    60.0 %         0

The words are those of the file, CoNLL-U or JSON lines as `prepare` reads them. Where the file has
no tag, or one that the model does not know, there is nothing to be right about: such words are left
out and counted. Accuracy is over words; macro-F1 is the mean of the F1 of all tags that occur, in
the file or among the predictions, as in a training's own evaluation (which counts pieces instead).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lert_ds.corpus.annotate import ANNOTATORS, AnnotatorConfig
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.errors import CorpusError, UserError
from lert_ds.labels import TagSets
from lert_ds.predictions import aligned
from lert_ds.tagged import TaggedSentence

_KINDS: Mapping[str, Literal["conllu", "precomputed"]] = {
    ".conllu": "conllu",
    ".jsonl": "precomputed",
}


def read_gold(
    path: Path, pos_column: Literal["xpos", "upos"] = "xpos", strip_subtypes: bool = False
) -> list[AnnotatedSentence]:
    """Return the annotated sentences of a file.

    Args:
        path: .conllu, or .jsonl with an annotated sentence a line.
        pos_column: CoNLL-U: the column of the part of speech.
        strip_subtypes: CoNLL-U: nsubj:pass becomes nsubj.

    Raises:
        UserError: it is no such file, or a line of it is no annotation.
    """
    kind = _KINDS.get(path.suffix)
    if kind is None:
        raise UserError(f"--gold {path}: name a .conllu file, or a .jsonl of annotated sentences")
    config = AnnotatorConfig(kind=kind, pos_column=pos_column, strip_subtypes=strip_subtypes)
    annotator = ANNOTATORS[kind](config, {})
    try:
        text = path.read_bytes().decode("utf-8-sig")
        sentences = list(annotator.annotate((0, item) for item in annotator.sentences(text)))
    except OSError as error:
        raise UserError(f"--gold {path}: {error.strerror}; name a file") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"--gold {path}: not UTF-8 at byte {error.start}; convert it, with iconv say"
        ) from error
    except CorpusError as error:
        raise CorpusError(f"--gold {path}: {error}") from error
    if not sentences:
        raise UserError(f"--gold {path}: there is no sentence in it")
    return sentences


def refuse_other_tags(path: Path, gold: Sequence[AnnotatedSentence], tag_sets: TagSets) -> None:
    """Refuse sentences that have no tag which the model could give, before it tags any.

    Raises:
        UserError: names the commonest tag of each task.
    """
    seen: dict[str, Counter[str]] = {task: Counter() for task in tag_sets}
    for sentence in gold:
        for task, counts in seen.items():
            counts.update(tag for tag in getattr(sentence, task) or () if tag is not None)
    if any(counts.keys() & set(tag_sets[task]) for task, counts in seen.items()):
        return
    commonest = [f"{task} {counts.most_common(1)[0][0]}" for task, counts in seen.items() if counts]
    raise UserError(
        f"--gold {path}: it has no tag that the model knows "
        f"({'; '.join(commonest) or 'none at all'}); name a file with the tags that the model was "
        "trained on, or look at --pos-column"
    )


@dataclass
class _Counts:
    hits: Counter[str] = field(default_factory=Counter)
    """Tag to the words that have it and were given it."""
    gold: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


class TagEvaluation:
    """Counts, sentence by sentence, what is right."""

    def __init__(self, tag_sets: TagSets) -> None:
        """Take the tags that the model can give."""
        self._tag_sets = tag_sets
        self._counts = {task: _Counts() for task in tag_sets}
        self._sentences = 0

    def add(self, gold: AnnotatedSentence, found: TaggedSentence) -> None:
        """Count one sentence."""
        assert [word.word for word in found.words] == gold.words
        self._sentences += 1
        for task, counts in self._counts.items():
            tags: Sequence[str | None] = getattr(gold, task) or [None] * len(gold.words)
            for tag, word in zip(tags, found.words, strict=True):
                best = word.tags.get(task)
                if tag is None or tag not in self._tag_sets[task]:
                    counts.left_out["no tag" if tag is None else tag] += 1
                elif not best:
                    counts.left_out["word without a piece"] += 1
                else:
                    counts.gold[tag] += 1
                    counts.predicted[best[0].name] += 1
                    counts.hits[tag] += best[0].name == tag

    def as_json(self) -> dict[str, Any]:
        """Return the figures of each task, and of each tag, shares from 0 to 1.

        `accuracy` and `macro_f1` are None where the file has no tag that the model knows.
        """
        return {
            "sentences": self._sentences,
            "tasks": {task: _figures(counts) for task, counts in self._counts.items()},
        }

    def show(self, *, as_json: bool) -> str:
        """Return the figures as a table, or as one line of JSON."""
        tree = self.as_json()
        if as_json:
            return json.dumps(tree, ensure_ascii=False)
        rows = [["task", "words", "accuracy", "macro-F1", "left out"]]
        for task, figures in tree["tasks"].items():
            left_out = figures["left_out"]
            named = ", ".join(f"{tag} {count:,}" for tag, count in list(left_out.items())[:3])
            more = ", …" if len(left_out) > 3 else ""
            rows.append(
                [
                    task,
                    f"{figures['words']:,}",
                    _percent(figures["accuracy"]),
                    _percent(figures["macro_f1"]),
                    f"{sum(left_out.values()):,}" + (f" ({named}{more})" if named else ""),
                ]
            )
        return "\n".join([f"{tree['sentences']:,} sentences", *aligned(rows)])


def _figures(counts: _Counts) -> dict[str, Any]:
    words = counts.gold.total()
    tags = dict(_of_tags(counts))
    return {
        "words": words,
        "accuracy": counts.hits.total() / words if words else None,
        "macro_f1": sum(tag["f1"] for tag in tags.values()) / len(tags) if tags else None,
        "left_out": dict(counts.left_out.most_common()),
        "tags": tags,
    }


def _of_tags(counts: _Counts) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each tag that occurs, the commonest first, with its figures."""
    for tag, _ in (counts.gold | counts.predicted).most_common():
        hits, gold, predicted = counts.hits[tag], counts.gold[tag], counts.predicted[tag]
        yield (
            tag,
            {
                "words": gold,
                "precision": hits / predicted if predicted else 0.0,
                "recall": hits / gold if gold else 0.0,
                "f1": 2 * hits / (gold + predicted),
            },
        )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
