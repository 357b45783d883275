"""How near a graph comes to the PyTorch model that it was made from: the batches and the figures.

Every row of a batch is compared for itself, at its real positions: an int8 attention that drops the
mask is right on every unpadded row, and one wrong row among many hides in their mean.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lert_ds.errors import ConfigError

Inputs = Mapping[str, Tensor]
Outputs = Mapping[str, NDArray[np.float32]]
Run = Callable[[Inputs], Outputs]

MASK_EVERY = 7
"""About the 15 % that LERT masks in training."""
_OF_POSITIONS = ("start_logits", "end_logits")
"""Outputs [batch, length] that choose a position: question answering."""


@dataclass(frozen=True)
class Difference:
    """How far one output of a graph is from PyTorch's, over all batches."""

    largest: float
    """Largest absolute difference of a value."""
    relative: float
    """Root mean square of the differences of a row over the standard deviation of PyTorch's output:
    that of the worst row."""
    relative_padded: float
    """The same of the worst row that ends in padding."""
    agreement: float | None
    """Share of positions (or texts) whose best class is PyTorch's; None without classes."""
    ignores_mask: bool
    """Whether padded rows come nearer to PyTorch without its attention mask than with it."""


def make_batches(
    tokenizer: Any,
    text: str,
    positions: int,
    *,
    token_types: int = 2,
    mask: bool = False,
    masked_positions: bool = False,
) -> list[dict[str, Tensor]]:
    """Return inputs of several lengths, single texts and padded batches, cut out of `text`.

    Args:
        tokenizer: A `transformers.BertTokenizer`.
        text: Repeated where it is too short.
        positions: Most tokens that the model takes; the longest batch has as many.
        token_types: Segments that the model knows; where 2 or more, some rows have a second one.
        mask: Put [MASK] in the place of some tokens.
        masked_positions: Give their places as an input, int64 [masked], indices into the flattened
            [batch * length].

    Raises:
        ConfigError: there is no piece in `text`.
    """
    stream = torch.tensor(
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64
    )
    if not len(stream):
        raise ConfigError("text: there is nothing in it to compare on; name a file with text")
    longest = (positions, max(positions // 4, 3))
    shapes: list[tuple[int, ...]] = [
        (min(16, positions),),
        (min(128, positions),),
        tuple(max(min(64, positions) * k // 8, 3) for k in (8, 5, 2, 1)),
        longest,
    ]
    batches, start = [], 0
    for lengths in shapes:
        ids = torch.full((len(lengths), max(lengths)), tokenizer.pad_token_id)
        types = torch.zeros_like(ids)
        for row, length in enumerate(lengths):
            places = (start + torch.arange(length)) % len(stream)
            ids[row, :length] = stream[places]
            ids[row, 0], ids[row, length - 1] = tokenizer.cls_token_id, tokenizer.sep_token_id
            if mask:
                ids[row, 1 : length - 1 : MASK_EVERY] = tokenizer.mask_token_id
            if token_types > 1 and row % 2:
                types[row, length // 2 : length] = 1
            start += length
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        batch = {"input_ids": ids, "attention_mask": real.long(), "token_type_ids": types}
        if masked_positions:
            batch["masked_positions"] = (ids == tokenizer.mask_token_id).flatten().nonzero()[:, 0]
        batches.append(batch)
    return batches


@torch.inference_mode()
def run_pytorch(model: nn.Module, inputs: Inputs) -> dict[str, NDArray[np.float32]]:
    """Return every output of `model`, named as in the graph; tag logits are `<task>_logits`."""
    outputs: dict[str, NDArray[np.float32]] = {}
    for name, value in model(**inputs).items():
        if isinstance(value, Mapping):
            outputs |= {f"{task}_logits": logits.numpy() for task, logits in value.items()}
        else:
            outputs[name] = value.numpy()
    return outputs


class Reference:
    """What PyTorch answers to some batches, to compare graphs with."""

    def __init__(self, batches: Sequence[Inputs], pytorch: Run) -> None:
        """Run the original.

        Args:
            batches: As `make_batches` makes them.
            pytorch: Inputs to outputs.
        """
        self.batches = batches
        self._wanted = [pytorch(batch) for batch in batches]
        self._unmasked = [
            pytorch({**batch, "attention_mask": torch.ones_like(batch["attention_mask"])})
            for batch in batches
        ]

    def compare(self, graph: Run, *, classes: bool = True) -> dict[str, Difference]:
        """Return for each output how far `graph` is from PyTorch.

        Args:
            graph: Inputs to outputs, of what the model was exported to.
            classes: Whether the outputs are scores of classes, so that the best can be compared.
        """
        found = [graph(batch) for batch in self.batches]
        answers = list(zip(self.batches, self._wanted, self._unmasked, found, strict=True))
        return {
            name: _difference(
                [
                    row
                    for batch, *outputs in answers
                    for row in _rows(name, batch, *(output[name] for output in outputs))
                ],
                classes=classes,
            )
            for name in self._wanted[0]
        }


@dataclass(frozen=True)
class _Row:
    """Values [positions, classes] of one text, at its real positions."""

    padded: bool
    wanted: NDArray[np.float32]
    unmasked: NDArray[np.float32]
    found: NDArray[np.float32]


def _rows(name: str, batch: Inputs, *outputs: NDArray[np.float32]) -> Iterator[_Row]:
    real = batch["attention_mask"].bool().numpy()
    length = real.shape[1]
    for row, places in enumerate(real):
        index: Any
        if name in _OF_POSITIONS:
            parts = [output[row, places][None] for output in outputs]
        elif "masked_positions" in batch:
            index = batch["masked_positions"].numpy() // length == row
            parts = [output[index] for output in outputs]
        elif outputs[0].ndim == 3:
            parts = [output[row, places] for output in outputs]
        else:
            parts = [output[row : row + 1] for output in outputs]
        if parts[0].size:
            wanted, unmasked, found = parts
            yield _Row(not places.all(), wanted, unmasked, found)


def _difference(rows: Sequence[_Row], *, classes: bool) -> Difference:
    spread = float(np.concatenate([row.wanted.ravel() for row in rows]).std()) or 1.0
    errors = [_rms(row.found - row.wanted) / spread for row in rows]
    padded = [row for row in rows if row.padded]
    to_masked, to_unmasked, masks_effect = (
        _rms(np.concatenate([(getattr(a, x) - getattr(a, y)).ravel() for a in padded]))
        for x, y in (("found", "wanted"), ("found", "unmasked"), ("wanted", "unmasked"))
    )
    same = [row.found.argmax(-1) == row.wanted.argmax(-1) for row in rows]
    return Difference(
        largest=max(float(np.abs(row.found - row.wanted).max()) for row in rows),
        relative=max(errors),
        relative_padded=max(error for error, row in zip(errors, rows, strict=True) if row.padded),
        agreement=float(np.concatenate(same).mean()) if classes else None,
        # Where the mask changes nothing (no attention head is left) there is nothing to ignore.
        ignores_mask=masks_effect > 1e-5 * spread and to_unmasked < to_masked,
    )


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))
