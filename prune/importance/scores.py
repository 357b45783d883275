"""How much attention heads and feed-forward neurons matter to a LERT, by one number each.

Every unit gets a gate, a factor of 1 on what it hands to its layer's output matrix; closing the
gate (0) is removing the unit. `L` is the loss of one example: for each head, MLM and the linguistic
tasks or that of a fine-tuned model, the mean cross entropy over the rows of that example, added.

    gate_gradient   mean over examples of |dL/dgate|     first-order change of the loss on removal
    fisher          mean over examples of (dL/dgate)²    with labels drawn from the model itself, so
                    it needs none: the Fisher information of the gate, and the curvature of the loss
                    where the model is converged
    magnitude       the L2 norm of the unit's weights; no data

Gates as in Michel et al. 2019, "Are Sixteen Heads Really Better than One?", arXiv 1905.10650, and
Fisher information of gates as in Kwon et al. 2022, "A Fast Post-Training Pruning Framework for
Transformers", arXiv 2204.09656. The absolute value or square is taken for each example: taken
after the sum over a batch, as TextPruner does, examples cancel, and a score depends on the size of
the batch.

    batch [instances, length] ─forward→ features [instances, length, units] before an output matrix
                              ─backward→ their gradients;  dL/dgate = Σ over places, features · grad

One forward and one backward a batch. No gradient of a weight is computed, none below the first
layer's attention, and the heads of pre-training run on the masked positions alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lert_ds.distributed import rank, sum_over_ranks
from lert_ds.errors import ConfigError
from lert_ds.evaluation import evaluating
from lert_ds.finetune.features import UNKNOWN
from lert_ds.objective import AnyBatch
from prune.importance.rows import Ask, masked_rows

Method = Literal["gate_gradient", "fisher", "magnitude"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Scores:
    """The importance of every head and neuron, higher is more; all tensors lie on the CPU."""

    method: str
    """What made them."""
    heads: tuple[Tensor, ...]
    """float32 [heads] a layer, as many as the layer has: 0 of them where all are pruned."""
    neurons: tuple[Tensor, ...]
    """float32 [neurons] a layer, in the same way."""
    examples: int
    """How many examples were averaged, over all ranks; 0 where no data was read."""


def score(
    model: PreTrainedModel,
    batches: Iterable[AnyBatch],
    method: Method,
    ask: Ask | None = None,
    *,
    precision: Precision = "fp32",
    seed: int = 0,
) -> Scores:
    """Return how much each head and neuron of `model` matters.

    The model is as before afterwards: weights, gradients, mode, hooks.

    Args:
        model: Whole weights, on the device to compute on; pruned layers may be among them.
        batches: This rank's share; those without a row count nowhere. Not read by `magnitude`.
        method: The formula, of those above.
        ask: What a batch asks of the model: masked words alone, where it is None. Examples without
            a known label of a head have no loss of it. `fisher` needs no labels, so it may ask
            for every head that the model has.
        precision: What matrices are multiplied in; scores are added up in float32 either way.
        seed: Of the labels that `fisher` draws.

    Raises:
        ConfigError: no batch, of any rank, had a row.
    """
    if method == "magnitude":
        return _magnitude(model)
    add_up = torch.abs if method == "gate_gradient" else torch.square
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed + rank())
    sums = _GateSums(model, add_up, device)
    ask = ask or masked_rows()
    with differentiating(model), sums.collected():
        for batch in batches:
            batch = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                rows = ask(model, batch)
            logits = {name: found.float() for name, found in rows.logits.items()}
            labels = rows.labels
            if method == "fisher":
                labels = {name: _draw(logits[name], generator) for name in logits}
            loss = _sum_of_example_losses(logits, labels, rows.examples)
            sums.examples += int(torch.bincount(rows.examples).count_nonzero())
            if loss.requires_grad:  # not where every head and neuron is pruned
                torch.autograd.backward(loss)
    return sums.averaged(method)


def _sum_of_example_losses(
    logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], examples: Tensor
) -> Tensor:
    """Return the sum over examples of their losses, in which no example meets another.

    Args:
        logits: Head to float32 [rows, classes].
        labels: Head to int64 [rows], UNKNOWN where there is none.
        examples: int64 [rows]: the example that a row is of.
    """
    total = next(iter(logits.values())).new_zeros(())
    for name, scores in logits.items():
        known = labels[name] != UNKNOWN
        losses = functional.cross_entropy(
            scores, labels[name], ignore_index=UNKNOWN, reduction="none"
        )
        counts = torch.bincount(examples, weights=known.float())
        total = total + (losses / counts[examples].clamp(min=1)).sum()
    return total


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return a class a row, int64 [rows], drawn as the logits say."""
    # One random number a row and its place in the cumulated probabilities; torch.multinomial draws
    # one a class, which took a fifth of the time of scoring.
    cumulated = logits.detach().softmax(-1).cumsum(-1)
    draws = torch.rand(len(logits), 1, generator=generator, device=logits.device)
    places = torch.searchsorted(cumulated, draws * cumulated[:, -1:], right=True)
    return places[:, 0].clamp(max=logits.shape[-1] - 1)


class _GateSums:
    """Sums over examples of a function of the gradients of all gates.

    The gates themselves need not exist: the gradient of a factor 1 on features is the sum of the
    features times their gradients.
    """

    def __init__(
        self, model: PreTrainedModel, add_up: Callable[[Tensor], Tensor], device: torch.device
    ) -> None:
        self.add_up = add_up
        self.examples = 0
        self.device = device
        self.outputs: list[tuple[nn.Module, Tensor]] = []
        """An output matrix, and the float32 [units] sums of what it reads."""
        for layer in model.base_model.encoder.layer:
            heads = layer.attention.self.num_attention_heads
            neurons = layer.output.dense.in_features
            for matrix, units in (
                (layer.attention.output.dense, heads),
                (layer.output.dense, neurons),
            ):
                self.outputs.append((matrix, torch.zeros(units, device=device)))

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Collect from every backward pass inside."""
        handles = [
            matrix.register_forward_pre_hook(self._watch(sums)) for matrix, sums in self.outputs
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, sums: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def before_output(_matrix: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            (features,) = inputs
            if not features.requires_grad:  # the first of all: the graph begins here
                features = features.detach().requires_grad_()
            values = features.detach()  # of no graph, which would hold itself through this hook

            def add(gradient: Tensor) -> None:
                products = (values * gradient).sum(1, dtype=torch.float32)
                gates = products.unflatten(-1, (len(sums), -1)).sum(-1)
                sums.add_(self.add_up(gates).sum(0))

            features.register_hook(add)
            return (features,)

        return before_output

    def averaged(self, method: Method) -> Scores:
        """Return the sums over all ranks, in one all-reduce, by the number of examples."""
        sizes = [len(sums) for _, sums in self.outputs]
        count = torch.tensor([self.examples], dtype=torch.float32, device=self.device)
        total = sum_over_ranks(torch.cat([sums for _, sums in self.outputs] + [count])).cpu()
        examples = int(total[-1])
        if not examples:
            raise ConfigError(
                "the data to score with has no masked position, or no label; name a corpus with "
                "text in it, or score by magnitude, which reads none"
            )
        means = torch.split(total[:-1] / examples, sizes)
        return Scores(method, means[::2], means[1::2], examples)


@contextmanager
def differentiating(model: nn.Module, weights: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Let `model` run without dropout and compute gradients of `weights` alone, from none on.

    Afterwards mode, gradients and what is to be trained are as they were.
    """
    before = {
        parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()
    }
    wanted = set(weights)
    for parameter in before:
        parameter.requires_grad_(parameter in wanted).grad = None
    try:
        with evaluating(model):
            yield
    finally:
        for parameter, (requires_grad, gradient) in before.items():
            parameter.requires_grad_(requires_grad).grad = gradient


@torch.no_grad()
def _magnitude(model: PreTrainedModel) -> Scores:
    """Return the L2 norm of all weights of each unit, biases aside."""
    heads, neurons = [], []
    for layer in model.base_model.encoder.layer:
        attention, matrix = layer.attention.self, layer.attention.output.dense
        squares = torch.zeros(attention.num_attention_heads)
        if len(squares):
            inputs = (attention.query, attention.key, attention.value)
            squares = _squares(matrix.weight, 1, len(squares))
            for linear in inputs:
                squares += _squares(linear.weight, 0, len(squares))
        heads.append(squares.sqrt())
        squares = torch.zeros(layer.output.dense.in_features)
        if len(squares):
            squares = _squares(layer.intermediate.dense.weight, 0, len(squares))
            squares = squares + _squares(layer.output.dense.weight, 1, len(squares))
        neurons.append(squares.sqrt())
    return Scores("magnitude", tuple(heads), tuple(neurons), 0)


def _squares(weight: Tensor, dimension: int, units: int) -> Tensor:
    """Return the sums of squares, float32 [units] on the CPU, of equal parts of `dimension`."""
    sums = weight.float().square().sum(1 - dimension)
    return torch.sum(sums.view(units, -1), 1).cpu()
