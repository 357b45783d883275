"""Instances of a corpus folder, printed for the eye: words, their tags, and one of them masked.

长·江/ns/S-Ns 发·源/v/O 于/p/O          words are parted by spaces, their pieces by ·
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lert_ds.data.draws import Draws
from lert_ds.data.masking import MaskingConfig, VocabularyFacts, mask
from lert_ds.data.shards import Corpus, Instance
from lert_ds.errors import ConfigError, CorpusError
from lert_ds.labels import IGNORE_INDEX, TASKS, TagSets

_NO_TAG = "_"


def show(folder: Path, count: int) -> None:
    """Print the first `count` instances of a corpus folder, the first of them masked as well.

    Raises:
        UserError: the folder is no corpus, or `count` is not positive.
    """
    if count < 1:
        raise ConfigError(f"--show {count}: name how many instances to print, 1 or more")
    corpus = Corpus([folder])
    pieces = _read_pieces(folder)
    facts = VocabularyFacts.of(corpus.manifest)
    lines = [f"{folder}: {len(corpus):,} instances of {corpus.length} tokens"]
    for number in range(min(count, len(corpus))):
        instance = corpus[number]
        lines += ["", *_describe(number, instance, pieces, corpus.tag_sets, facts)]
        if number == 0:
            lines += ["", *_describe_masked(instance, pieces, facts)]
    sys.stdout.write("\n".join(lines) + "\n")


def _read_pieces(folder: Path) -> list[str]:
    path = folder / "vocab.txt"
    if not path.is_file():
        raise CorpusError(f"{path}: the file is missing; copy or prepare the corpus again")
    return path.read_text("utf-8").split("\n")


def _describe(
    number: int,
    instance: Instance,
    pieces: Sequence[str],
    tag_sets: TagSets,
    facts: VocabularyFacts,
) -> list[str]:
    special = facts.never_masked[instance.input_ids]
    tasks = [task for task in TASKS if (instance.tags[task] != IGNORE_INDEX).any()]
    words = []
    for place, token in enumerate(instance.input_ids.tolist()):
        if token == facts.pad_id:
            continue
        if special[place]:
            words.append(pieces[token])
            continue
        if not instance.word_starts[place] and words and not special[place - 1]:
            head, slash, tags = words[-1].partition("\t")
            words[-1] = f"{head}·{pieces[token]}{slash}{tags}"
            continue
        classes = [int(instance.tags[task][place]) for task in tasks]
        names = [
            _NO_TAG if found == IGNORE_INDEX else tag_sets[task][found]
            for task, found in zip(tasks, classes, strict=True)
        ]
        words.append("\t".join([pieces[token], "/".join(names)]) if names else pieces[token])
    text = " ".join(word.replace("\t", "/") for word in words)
    tokens = int((~special).sum())
    padding = int((instance.input_ids == facts.pad_id).sum())
    title = (
        f"instance {number}: {tokens} tokens in {int(instance.word_starts.sum())} words, "
        f"{padding} of padding; tags: {'/'.join(tasks) or 'none'}"
    )
    return [title, text]


def _describe_masked(
    instance: Instance, pieces: Sequence[str], facts: VocabularyFacts
) -> list[str]:
    """Return the instance as it may be masked in a training."""
    masked = mask(instance, Draws(0, 0, 0), MaskingConfig(), facts)
    chosen = set(masked.positions.tolist())
    shown = [
        f"⟦{pieces[token]}⟧" if place in chosen else pieces[token]
        for place, token in enumerate(masked.input_ids.tolist())
        if token != facts.pad_id or place in chosen
    ]
    labels = " ".join(pieces[token] for token in masked.labels.tolist())
    return [
        f"the same, masked (seed 0, epoch 0): {len(chosen)} predictions",
        " ".join(shown),
        f"to predict: {labels}",
    ]
