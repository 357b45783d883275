"""What a benchmark's models are run on: real text, cut to a batch and a length, some of it masked.

    [CLS] 今 天 [MASK] 气 很 好 [SEP]        length 8; masked_positions = [3]

Models of different vocabularies get the same text, cut alike, masked at the same places.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lert_ds.errors import ConfigError
from prune.benchmark.worker import Arrays

SHORTEST = 3
"""[CLS], a piece, [SEP]."""


class Text:
    """The pieces of a text in one tokenizer, from which inputs of any size are cut."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        """Cut `text` into pieces.

        Raises:
            ConfigError: there is none in it.
        """
        self._tokenizer = tokenizer
        self._pieces = np.array(
            tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64
        )
        if not len(self._pieces):
            raise ConfigError("text: there is nothing in it to measure on; name a file with text")

    def inputs(
        self, batch_size: int, length: int, masked_share: float | None, *, first: int = 0
    ) -> Arrays:
        """Return full rows of `length` tokens, without padding.

        Args:
            batch_size: Rows; the text goes on from row to row and starts again where it ends.
            length: Tokens a row, with [CLS] and [SEP].
            masked_share: Share of a row's pieces that [MASK] takes the place of, one at least; None
                leaves the text as it is, for a model that fills none.
            first: Which batch of the text; each goes on where the one before it ended.
        """
        assert length >= SHORTEST, length
        places = np.arange(batch_size * length) + first * batch_size * length
        ids = self._pieces[places % len(self._pieces)].reshape(batch_size, length)
        ids[:, 0], ids[:, -1] = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        given = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        if masked_share is None:
            return given
        positions = _masked_positions(batch_size, length, masked_share)
        ids.flat[positions] = self._tokenizer.mask_token_id
        return {**given, "masked_positions": positions}


def _masked_positions(batch_size: int, length: int, share: float) -> NDArray[np.int64]:
    """Return the masked places, int64 [masked], as many a row: indices into [batch * length]."""
    generator = np.random.default_rng((batch_size, length))  # the same for every model
    count = max(1, round(share * (length - 2)))
    rows = [
        row * length + 1 + np.sort(generator.choice(length - 2, count, replace=False))
        for row in range(batch_size)
    ]
    return np.concatenate(rows).astype(np.int64)
