"""Counts of a corpus to a page: what is in it, what was dropped, how fast it was made."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lert_ds.labels import IGNORE_INDEX, TASKS

Array = npt.NDArray[Any]

NO_TAG = "(no tag)"
_SHOWN_TAGS = 40


def summarise(
    totals: Mapping[str, int],
    token_counts: Array,
    class_counts: Mapping[str, Array],
    special_ids: Mapping[str, int],
    tag_sets: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Return the statistics of one corpus folder.

    Args:
        totals: `documents`, `sentences`, `characters`, `words`, `instances`.
        token_counts: int64 [vocabulary]: tokens of the instances by id, special ones too.
        class_counts: task to int64 [256]: tokens of text by class.
        special_ids: `pad`, `unk`, `cls`, `sep`, `mask` to their ids.
        tag_sets: task to its tags.
    """
    places = int(token_counts.sum())
    padding = int(token_counts[special_ids["pad"]])
    of_text = token_counts.copy()
    # [UNK] stays: it stands for text, and is masked and predicted like any piece.
    of_text[[special_ids[role] for role in ("pad", "cls", "sep", "mask")]] = 0
    tokens = int(of_text.sum())
    tags = {task: _histogram(class_counts[task], tag_sets[task]) for task in TASKS}
    return {
        **totals,
        "tokens": tokens,
        "words_per_sentence": _ratio(totals["words"], totals["sentences"]),
        "tokens_per_word": _ratio(tokens, totals["words"]),
        "unknown_share": _ratio(int(of_text[special_ids["unk"]]), tokens),
        "padding_share": _ratio(padding, places),
        "distinct_tokens": int(np.count_nonzero(of_text)),
        "unigram_entropy_nats": entropy(of_text),
        "tags": tags,
        "majority_tag_share": {task: _majority(tags[task]) for task in TASKS},
    }


def entropy(counts: Array) -> float:
    """Return the entropy, in nats, of the distribution that counts are drawn from."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return round(float(-(shares * np.log(shares)).sum()) + 0.0, 6)


def render(name: str, statistics: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """Return a page of Markdown.

    Args:
        name: the corpus.
        statistics: of `summarise`, and `speed`, stage to its seconds and characters a second.
        counts: everything dropped or ignored, by reason.
    """
    facts = statistics
    rows = [
        ("documents", f"{facts['documents']:,}"),
        ("sentences", f"{facts['sentences']:,}"),
        ("characters", f"{facts['characters']:,}"),
        ("words", f"{facts['words']:,} ({facts['words_per_sentence']:.2f} a sentence)"),
        ("tokens", f"{facts['tokens']:,} ({facts['tokens_per_word']:.2f} a word)"),
        ("distinct tokens", f"{facts['distinct_tokens']:,}"),
        ("[UNK]", f"{facts['unknown_share']:.3%} of the tokens"),
        ("unigram entropy", f"{facts['unigram_entropy_nats']:.4f} nats a token"),
        ("instances", f"{facts['instances']:,}"),
        ("padding", f"{facts['padding_share']:.3%} of all places"),
    ]
    for stage, speed in facts["speed"].items():
        text = f"{speed['seconds']:.1f} s, {speed['characters_per_second']:,.0f} characters/s"
        rows.append((stage, f"{text}, one process"))
    page = [f"# {_cell(name)}", "", *_table(("what", "how much"), rows)]
    page += ["", "## Dropped or ignored", ""]
    page += _table(("reason", "count"), [(k, f"{v:,}") for k, v in sorted(counts.items())])
    for task in TASKS:
        page += ["", f"## {task.upper()} tags, by token", ""]
        if not any(tag != NO_TAG for tag in facts["tags"][task]):
            page.append("None: the annotator does not give them.")
            continue
        page.append(f"The commonest is {facts['majority_tag_share'][task]:.1%} of those tagged.")
        page += ["", *_table(("tag", "tokens", "share"), _shares(facts["tags"][task]))]
    return "\n".join(page) + "\n"


def _histogram(counts: Array, tags: Sequence[str]) -> dict[str, int]:
    """Return tag to its tokens, the commonest first, those without a tag last."""
    found = {tag: int(counts[number]) for number, tag in enumerate(tags) if counts[number]}
    histogram = dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
    if counts[IGNORE_INDEX]:
        histogram[NO_TAG] = int(counts[IGNORE_INDEX])
    return histogram


def _majority(histogram: Mapping[str, int]) -> float:
    tagged = [count for tag, count in histogram.items() if tag != NO_TAG]
    return _ratio(max(tagged, default=0), sum(tagged))


def _shares(histogram: Mapping[str, int]) -> list[tuple[str, str, str]]:
    total = sum(histogram.values())
    rows = [(tag, f"{count:,}", f"{count / total:.2%}") for tag, count in histogram.items()]
    hidden = len(rows) - _SHOWN_TAGS
    return rows if hidden <= 0 else [*rows[:_SHOWN_TAGS], (f"… {hidden} more", "", "")]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["Nothing."]
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(text: str) -> str:
    """Return a text as Markdown shows it: tags of a treebank may hold anything, HTML too."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("|", "\\|")


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0
