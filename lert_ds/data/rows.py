"""An instance of the corpus to shorter rows, for the steps that train at a smaller length.

    instance of 16    [CLS] 我 们 去 北 京 。 [SEP] 天 气 很 好 。 [SEP] [PAD] [PAD]
    rows of 8         [CLS] 我 们 去 北 京 。 [SEP]
                      [CLS] 天 气 很 好 。 [SEP] [PAD]

Each row is what `prepare` with that length makes and what BERT's corpora of 128 tokens are: it
opens with [CLS] and a whole word, ends in [SEP], and its padding comes last. An instance has two
special tokens and each row its own two: so of 510 tokens of text in four rows of 128 the last 6,
and a few more where words end early, are left out; the phase at full length has them. An instance
always makes as many rows, so a batch has one shape; of one that is half empty the last rows are
[CLS] [SEP].
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from lert_ds.data.masking import MaskingConfig, VocabularyFacts
from lert_ds.data.shards import Instance, Rows
from lert_ds.errors import ConfigError
from lert_ds.labels import IGNORE_INDEX

SPECIAL_TOKENS = 2
"""[CLS] and [SEP] of each row."""


@dataclass(frozen=True)
class RowLengths:
    """From which sample of a training on rows have how many tokens."""

    borders: Sequence[tuple[int, int]]
    """(sample, tokens), in order; none: rows are instances."""

    def at(self, sample: int) -> int | None:
        """Return the length that holds for `sample`; None for that of an instance."""
        if not self.borders:
            return None
        place = bisect_right(self.borders, sample, key=lambda border: border[0])
        return self.borders[max(place, 1) - 1][1]


AS_THE_CORPUS = RowLengths(())
"""Rows are instances."""


def check_length(length: int, of_instance: int) -> None:
    """Refuse a length that instances cannot be cut to.

    Raises:
        ConfigError: it does not divide `of_instance`, or leaves no room for text.
    """
    if length > SPECIAL_TOKENS and of_instance % length == 0:
        return
    fitting = [n for n in range(8, of_instance + 1) if of_instance % n == 0] or [of_instance]
    raise ConfigError(
        f"train.lengths has rows of {length} tokens, but the corpus has instances of "
        f"{of_instance}; take one of {', '.join(map(str, fitting))}"
    )


def cut(instances: Rows, length: int, vocabulary: VocabularyFacts) -> Rows:
    """Return instances as rows of `length` tokens, which divides their own length.

    Words stay whole but for those that are longer than a row.
    """
    count, size = instances.input_ids.shape
    if length == size:
        return instances
    special = vocabulary.special_ids
    of_each = size // length
    rows = Rows.empty(count * of_each, length, instances.tags)
    rows.input_ids[:] = special["pad"]
    rows.input_ids[:, 0] = special["cls"]
    rows.word_starts[:] = False
    for classes in rows.tags.values():
        classes[:] = IGNORE_INDEX
    for number in range(count):
        instance = instances.row(number)
        stretches = _stretches(instance, of_each, length, vocabulary)
        for row, (start, stop) in enumerate(stretches, number * of_each):
            end = 1 + stop - start
            rows.input_ids[row, 1:end] = instance.input_ids[start:stop]
            rows.input_ids[row, end] = special["sep"]
            rows.word_starts[row, 1:end] = instance.word_starts[start:stop]
            for task, classes in instance.tags.items():
                rows.tags[task][row, 1:end] = classes[start:stop]
    return rows


def _stretches(
    instance: Instance, rows: int, length: int, vocabulary: VocabularyFacts
) -> list[tuple[int, int]]:
    """Return start and stop of the text of each row; an empty one where there is no more."""
    is_special = vocabulary.never_masked.take(instance.input_ids)
    # Where a row may begin or end: at a word, at what parts documents, and after it.
    opens = instance.word_starts | is_special
    opens[1:] |= is_special[:-1]
    borders = opens.nonzero()[0]
    text = (~is_special).nonzero()[0]
    end = int(text[-1]) + 1 if len(text) else 0
    place, found = 0, []
    for _ in range(rows):
        place += int(is_special[place:end].argmin()) if place < end else 0  # none opens with [SEP]
        stop = min(place + length - SPECIAL_TOKENS, end)
        if stop < end:
            border = int(borders[borders.searchsorted(stop, side="right") - 1])
            stop = border if border > place else stop
        # The row's own [SEP] stands for one that would come before it.
        text_end = stop - 1 if stop > place and is_special[stop - 1] else stop
        found.append((place, text_end))
        place = stop
    return found


def masking_of_rows(masking: MaskingConfig, length: int, of_instance: int) -> MaskingConfig:
    """Return how rows of `length` tokens are masked: a given `max_predictions` in proportion."""
    if masking.max_predictions is None or length == of_instance:
        return masking
    limit = max(1, masking.max_predictions * length // of_instance)
    return masking.model_copy(update={"max_predictions": limit})
