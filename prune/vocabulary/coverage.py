"""What a smaller vocabulary does to text that it was not chosen by."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from prune.vocabulary.texts import batches, count_ids, id_count, tokenize

SHOWN_PIECES = 20


@dataclass(frozen=True)
class Coverage:
    """Counts over sentences, tokenized by the whole vocabulary and by what is left of it."""

    sentences: int
    changed_sentences: int
    """Sentences that are cut into other pieces than before."""
    tokens: int
    """Tokens by the whole vocabulary."""
    tokens_kept: int
    """Those of them whose piece stays."""
    tokens_after: int
    """Tokens by the pruned vocabulary: more, where words are spelled in smaller pieces."""
    unknown: int
    """[UNK] by the whole vocabulary."""
    unknown_after: int
    """[UNK] by the pruned one."""
    lost_pieces: tuple[tuple[str, int], ...]
    """The most frequent of the pieces that were dropped, with their counts."""

    @property
    def kept_share(self) -> float:
        """Share of the tokens whose piece stays."""
        return self.tokens_kept / max(1, self.tokens)

    @property
    def new_unknown_share(self) -> float:
        """How many [UNK] there are more, as a share of the tokens before."""
        return (self.unknown_after - self.unknown) / max(1, self.tokens)

    @property
    def changed_share(self) -> float:
        """Share of the sentences that are cut into other pieces."""
        return self.changed_sentences / max(1, self.sentences)

    def as_json(self) -> dict[str, Any]:
        """Return counts and shares as plain JSON values."""
        return asdict(self) | {
            "kept_share": self.kept_share,
            "new_unknown_share": self.new_unknown_share,
            "changed_share": self.changed_share,
        }

    def __str__(self) -> str:
        return (
            f"of {self.tokens:,} tokens {self.kept_share:.2%} kept, {self.new_unknown_share:.2%} "
            f"newly [UNK]; of {self.sentences:,} sentences {self.changed_share:.2%} changed"
        )


def measure(whole: Any, pruned: Any, pieces: Tensor, sentences: Iterable[str]) -> Coverage:
    """Return what becomes of `sentences`.

    Args:
        whole: The tokenizer of the whole vocabulary.
        pruned: That of `prune.vocabulary.pruned_tokenizer.save`.
        pieces: int64 [kept], the ids that it keeps, rising.
        sentences: Text, a sentence each.
    """
    size = id_count(whole)
    old_ids = pieces.numpy()
    before = np.zeros(size, np.int64)
    after = np.zeros(size, np.int64)
    total = changed = 0
    for batch in batches(sentences):
        ids = tokenize(whole, batch)
        ids_after = [old_ids[row].tolist() for row in tokenize(pruned, batch)]
        total += len(batch)
        changed += sum(old != new for old, new in zip(ids, ids_after, strict=True))
        before += count_ids(ids, size)
        after += count_ids(ids_after, size)
    lost = before.copy()
    lost[old_ids] = 0
    order = np.argsort(-lost, kind="stable")[:SHOWN_PIECES]
    names = whole.convert_ids_to_tokens(order.tolist())
    return Coverage(
        sentences=total,
        changed_sentences=changed,
        tokens=int(before.sum()),
        tokens_kept=int(before[old_ids].sum()),
        tokens_after=int(after.sum()),
        unknown=int(before[whole.unk_token_id]),
        unknown_after=int(after[whole.unk_token_id]),
        lost_pieces=tuple(
            (name, int(lost[number]))
            for name, number in zip(names, order, strict=True)
            if lost[number]
        ),
    )
