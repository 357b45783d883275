import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad
from torch.nn import functional

from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.labels import IGNORE_INDEX, LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from prune.importance import pruner as pruner_module
from prune.importance.pruner import TransformerPruner, importance
from prune.importance.rows import masked_rows
from prune.importance.scores import Scores
from prune.importance.textpruner_model import TransformerPruningConfig

TASKS = ("pos", "dep")
HEADS, NEURONS, LAYERS = 4, 24, 3


def make_model(**changes: object) -> LertForPreTraining:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 45, "hidden_size": 32, "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS, "intermediate_size": NEURONS, "max_position_embeddings": 32,
        "initializer_range": 0.2, "tag_sets": {task: list(LTP_TAGS[task]) for task in TASKS},
    }  # fmt: skip
    return LertForPreTraining(LertConfig(**shape | changes)).eval()


def make_batch(instances: int, seed: int = 0, masked: int = 3) -> Batch:
    """Rows of 6 to 10 tokens in 10 places."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 45, (instances, 10), generator=generator)
    real = torch.arange(10) < (6 + torch.arange(instances) % 5)[:, None]
    positions = (10 * torch.arange(instances)[:, None] + 2 * torch.arange(masked)).flatten()
    labels = torch.randint(5, 45, (len(positions),), generator=generator)
    tags = {
        task: torch.randint(0, len(LTP_TAGS[task]), (len(positions),), generator=generator)
        for task in TASKS
    }
    tags["pos"][::2] = IGNORE_INDEX
    return Batch(ids.where(real, 0), real, positions, labels, tags)


def gate_gradients(
    model: LertForPreTraining, batch: Batch, tasks: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return dL/dgate by differentiating gates on heads, on neurons, and before activations."""
    gates = {
        "heads": torch.ones(LAYERS, HEADS),
        "neurons": torch.ones(LAYERS, NEURONS),
        "before": torch.ones(LAYERS, NEURONS),
    }

    def loss(gates: dict[str, Tensor]) -> Tensor:
        weights = {}
        for number, layer in enumerate(model.bert.encoder.layer):
            at = f"bert.encoder.layer.{number}"
            inner, columns = gates["before"][number], gates["heads"][number].repeat_interleave(8)
            weights |= {
                f"{at}.attention.output.dense.weight": layer.attention.output.dense.weight
                * columns,
                f"{at}.output.dense.weight": layer.output.dense.weight * gates["neurons"][number],
                f"{at}.intermediate.dense.weight": layer.intermediate.dense.weight * inner[:, None],
                f"{at}.intermediate.dense.bias": layer.intermediate.dense.bias * inner,
            }
        output = functional_call(
            model,
            weights,
            (batch.input_ids,),
            {"attention_mask": batch.attention_mask, "masked_positions": batch.masked_positions},
        )
        total = functional.cross_entropy(output.logits, batch.labels)
        for task in tasks:
            total = total + functional.cross_entropy(
                output.tag_logits[task], batch.tags[task], ignore_index=IGNORE_INDEX
            )
        return total

    return grad(loss)(gates)


def assert_equal(found: Scores, heads: Tensor, neurons: Tensor) -> None:
    torch.testing.assert_close(torch.stack(found.heads), heads, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(torch.stack(found.neurons), neurons, rtol=1e-4, atol=1e-7)


def flat(scores: Scores) -> Tensor:
    return torch.cat([*scores.heads, *scores.neurons])


def logits_of(model: LertForPreTraining, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.eval()(batch.input_ids, attention_mask=batch.attention_mask).logits


def zeroed(model: LertForPreTraining, heads: Tensor, neurons: Tensor) -> LertForPreTraining:
    """Return a copy in which what the masks leave out hands on zeros."""
    whole = copy.deepcopy(model)
    with torch.no_grad():
        for layer, of_heads, of_neurons in zip(
            whole.bert.encoder.layer, heads, neurons, strict=True
        ):
            layer.attention.output.dense.weight *= of_heads.repeat_interleave(8)
            layer.output.dense.weight *= of_neurons
    return whole


@pytest.mark.parametrize("tasks", [(), TASKS])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 2)])
def test_scores_are_what_autograd_says_of_gates(
    tasks: tuple[str, ...], sizes: tuple[int, ...]
) -> None:
    """The absolute value is taken of a batch; with one instance a batch it is |dL/dgate|."""
    model = make_model()
    batches = [make_batch(size, seed) for seed, size in enumerate(sizes)]
    gradients = [gate_gradients(model, batch, tasks) for batch in batches]
    heads, neurons, before = (
        sum(gradient[name].abs() for gradient in gradients) / sum(sizes)
        for name in ("heads", "neurons", "before")
    )
    found = importance(model, batches, masked_rows(tasks))
    assert_equal(found, heads, neurons + before)
    assert (found.method, found.examples) == ("textpruner", sum(sizes))
    assert_equal(
        importance(model, batches, masked_rows(tasks), ffn_even_masking=False), heads, neurons
    )


def test_a_model_of_fewer_heads_in_every_layer_has_scores() -> None:
    whole, batch = make_model(), make_batch(4)
    with torch.no_grad():
        for layer in whole.bert.encoder.layer:
            layer.attention.output.dense.weight[:, :16] = 0
    cut = TransformerPruner(whole)
    mask = torch.tensor([[0, 0, 1, 1]] * LAYERS)
    found = importance(cut.prune(head_mask=mask), [batch])
    wanted = importance(whole, [batch])
    assert_equal(found, torch.stack(wanted.heads)[:, 2:], torch.stack(wanted.neurons))


def test_with_logits_the_reference_gives_the_labels_at_every_position() -> None:
    model, reference, batch = make_model(), make_model(initializer_range=0.3), make_batch(4)
    found = importance(model, [batch], use_logits=True, reference=reference)
    labels = logits_of(reference, batch).softmax(-1)
    for layer in model.bert.encoder.layer:
        layer.attention.output.dense.weight.grad = None
    logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits
    functional.cross_entropy(logits.flatten(0, 1), labels.flatten(0, 1)).backward()
    for layer, heads in zip(model.bert.encoder.layer, found.heads, strict=True):
        weight = layer.attention.output.dense.weight
        gates = (weight.grad * weight).sum(0).view(HEADS, 8).sum(1).detach()
        torch.testing.assert_close(heads, gates.abs() / 4, rtol=1e-4, atol=1e-7)
    assert found.method == "textpruner_logits"


def test_against_itself_a_model_scores_next_to_nothing() -> None:
    model, batch = make_model(), make_batch(4)
    exact = importance(model, [batch], use_logits=True)
    assert flat(exact).max() < 1e-5 * flat(importance(model, [batch])).max()
    rounded = importance(model, [batch], use_logits=True, precision="bf16")
    assert flat(rounded).max() > 10 * flat(exact).max()


def test_bf16_is_near_fp32() -> None:
    model, batch = make_model(initializer_range=0.05), make_batch(32)
    fp32, bf16 = (
        flat(importance(model, [batch], masked_rows(TASKS), precision=p)) for p in ("fp32", "bf16")
    )  # type: ignore[arg-type]
    assert bf16.dtype == torch.float32
    assert 0 < (bf16 - fp32).norm() < 0.1 * fp32.norm()


@pytest.mark.parametrize("use_logits", [False, True])
def test_processes_add_their_batches_up(monkeypatch: pytest.MonkeyPatch, use_logits: bool) -> None:
    """A process without any batch takes part; batches of all processes count by their size."""
    model, reference = make_model(), make_model(initializer_range=0.3)
    batches = [make_batch(size, seed) for seed, size in enumerate((4, 2, 3))]

    def run(some: list[Batch]) -> Scores:
        return importance(model, some, use_logits=use_logits, reference=reference)

    whole = run(batches)
    shares: list[Tensor] = []
    monkeypatch.setattr(pruner_module, "sum_over_ranks", lambda own: shares.append(own) or own)
    run(batches[:1])
    run(batches[1:])
    monkeypatch.setattr(pruner_module, "sum_over_ranks", lambda own: own + shares[0] + shares[1])
    both = run([])
    torch.testing.assert_close(flat(both), flat(whole))
    assert both.examples == whole.examples == 9


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("use_logits", [False, True])
def test_the_model_is_as_before(use_logits: bool, damaged: bool) -> None:
    model = make_model().train()
    frozen = model.tag_head("dep").weight.requires_grad_(False)
    model.bert.embeddings.eval()
    bias = model.cls.predictions.bias
    bias.grad = torch.ones_like(bias)
    weights, before = list(model.parameters()), copy.deepcopy(model.state_dict())
    batch = make_batch(4)
    if damaged:
        batch = batch._replace(input_ids=batch.input_ids + 100)
        with pytest.raises(IndexError):
            importance(model, [batch], use_logits=use_logits)
    else:
        importance(model, [batch], use_logits=use_logits, precision="bf16")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert [p for p in model.parameters() if p.grad is not None] == [bias]
    assert torch.equal(bias.grad, torch.ones_like(bias))
    assert model.training
    assert model.bert.encoder.training
    assert not model.bert.embeddings.training


def test_batches_with_nothing_masked_count_nowhere() -> None:
    model, batch, empty = make_model(), make_batch(4), make_batch(4, masked=0)
    wanted, found = importance(model, [batch]), importance(model, iter([empty, batch, empty]))
    assert torch.equal(flat(found), flat(wanted))
    assert found.examples == 4
    with pytest.raises(ConfigError, match="no masked position"):
        importance(model, [empty])


# The pruner.


def masks(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Uneven ones, that leave layer 0 without a head and layer 2 whole."""
    generator = torch.Generator().manual_seed(seed)
    heads = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1]])
    neurons = torch.randint(0, 2, (LAYERS, NEURONS), generator=generator)
    neurons[2] = 1
    return heads, neurons


def assert_prunes_to(
    pruner: TransformerPruner,
    model: LertForPreTraining,
    heads: Tensor,
    neurons: Tensor,
    tokenizer: Path,
    folder: Path,
) -> None:
    """Hold that what is left computes what `model` does without the rest, and reloads."""
    batch = make_batch(5)
    left = pruner.model
    config = left.config
    assert [config.heads_of(n) for n in range(LAYERS)] == heads.sum(1).tolist()
    assert [config.intermediate_size_of(n) for n in range(LAYERS)] == neurons.sum(1).tolist()
    logits = logits_of(left, batch)
    torch.testing.assert_close(
        logits, logits_of(zeroed(model, heads, neurons), batch), rtol=0, atol=1e-5
    )
    pruner.save_model(folder / "model", tokenizer)
    again, report = model_dir.load(folder / "model")
    assert not report.random
    assert torch.equal(logits_of(again, batch), logits)


@pytest.mark.parametrize("kinds", ["both", "heads", "neurons"])
def test_masks_are_cut_out(kinds: str, tiny_corpus: Path, tmp_path: Path) -> None:
    model = make_model().train()
    before = copy.deepcopy(model)
    heads, neurons = masks()
    pruner = TransformerPruner(model)
    returned = pruner.prune(
        head_mask=None if kinds == "neurons" else heads,
        ffn_mask=None if kinds == "heads" else neurons,
    )
    assert returned is pruner.model
    assert returned.training
    heads = torch.ones(LAYERS, HEADS) if kinds == "neurons" else heads
    neurons = torch.ones(LAYERS, NEURONS) if kinds == "heads" else neurons
    assert_prunes_to(pruner, before, heads.int(), neurons.int(), tiny_corpus, tmp_path)
    assert torch.equal(logits_of(model, make_batch(5)), logits_of(before, make_batch(5)))


def test_keep_shape_sets_to_zero() -> None:
    model, batch = make_model(), make_batch(5)
    heads, neurons = masks()
    pruner = TransformerPruner(model)
    pruner.prune(head_mask=heads, ffn_mask=neurons, keep_shape=True)
    assert pruner.keep_shape
    assert pruner.model.config.layer_attention_heads is None
    values = pruner.model.bert.encoder.layer[0].attention.self.value.weight
    assert values.shape == (32, 32)
    assert not values.any()
    wanted = logits_of(zeroed(model, heads, neurons), batch)
    torch.testing.assert_close(logits_of(pruner.model, batch), wanted, rtol=0, atol=1e-5)
    smaller = pruner.prune(head_mask=heads, ffn_mask=neurons)  # and now in earnest
    assert smaller.config.layer_attention_heads == [0, 2, 4]
    torch.testing.assert_close(logits_of(smaller, batch), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_iters": 1},
        {"n_iters": 3, "head_even_masking": False, "ffn_even_masking": False, "multiple_of": 4},
        {"n_iters": 2, "pruning_order": "head-first"},
        {"n_iters": 2, "pruning_order": "ffn-first", "ffn_even_masking": False},
        {"n_iters": 2, "use_logits": True},
        {"n_iters": 2, "target_ffn_size": None},
        {"n_iters": 2, "target_num_of_heads": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_iterations_are_cut_out(
    changes: dict[str, Any],
    precision: Any,
    tiny_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model()
    before = copy.deepcopy(model)
    targets = {"target_ffn_size": 12, "target_num_of_heads": 2}
    config = TransformerPruningConfig(pruning_method="iterative", **targets | changes)
    pruner = TransformerPruner(model, config, tasks=TASKS, precision=precision)
    pruner.prune([make_batch(4, seed) for seed in range(3)])
    heads, neurons = pruner.head_mask, pruner.ffn_mask
    assert heads is not None
    assert neurons is not None
    assert heads.sum() == LAYERS * (changes.get("target_num_of_heads", 2) or HEADS)
    assert neurons.sum() == LAYERS * (changes.get("target_ffn_size", 12) or NEURONS)
    assert_prunes_to(pruner, before, heads.int(), neurons.int(), tiny_corpus, tmp_path)
    assert torch.equal(logits_of(model, make_batch(5)), logits_of(before, make_batch(5)))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_iteration_takes_the_least_important() -> None:
    model, batches = make_model(), [make_batch(4, seed) for seed in range(3)]
    config = TransformerPruningConfig(
        target_ffn_size=12, target_num_of_heads=2, pruning_method="iterative",
        ffn_even_masking=False, head_even_masking=False,
    )  # fmt: skip
    pruner = TransformerPruner(model, config, tasks=TASKS)
    pruner.prune(batches)
    scores = importance(model, batches, masked_rows(TASKS), ffn_even_masking=False)
    for mask, values in ((pruner.head_mask, scores.heads), (pruner.ffn_mask, scores.neurons)):
        assert mask is not None
        kept, gone = torch.cat(values)[mask.flatten() > 0], torch.cat(values)[mask.flatten() == 0]
        assert kept.min() > gone.max()


def test_masks_of_an_earlier_call_are_not_used_again() -> None:
    model, batch = make_model(), make_batch(5)
    heads = torch.tensor([[0, 1, 1, 0]] * LAYERS)
    neurons = torch.ones(LAYERS, NEURONS)
    neurons[:, 3] = 0
    pruner = TransformerPruner(model)
    pruner.prune(head_mask=heads)
    pruner.prune(ffn_mask=neurons)
    assert pruner.model.config.layer_attention_heads == [2, 2, 2]
    assert pruner.model.config.intermediate_size == NEURONS - 1
    wanted = logits_of(zeroed(model, heads, neurons), batch)
    torch.testing.assert_close(logits_of(pruner.model, batch), wanted, rtol=0, atol=1e-5)


def iterative(**changes: object) -> TransformerPruningConfig:
    return TransformerPruningConfig(pruning_method="iterative", **changes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (iterative(target_num_of_heads=5), "target_num_of_heads = 5: a layer has 4"),
        (iterative(target_num_of_heads=0), "target_num_of_heads = 0"),
        (iterative(target_ffn_size=25), "target_ffn_size = 25: a layer has 24"),
        (iterative(target_ffn_size=10, multiple_of=4), "multiples of multiple_of = 4"),
        (iterative(target_ffn_size=10, multiple_of=5), "multiples of multiple_of = 5"),
        (iterative(n_iters=0), "n_iters = 0"),
    ],
)
def test_a_target_that_cannot_be_met_is_refused(
    config: TransformerPruningConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerPruner(make_model(), config)


def test_what_cannot_be_pruned_is_refused() -> None:
    pruner = TransformerPruner(make_model())
    with pytest.raises(ConfigError, match="there is none"):
        pruner.prune()
    for keep_shape in (False, True):
        with pytest.raises(ConfigError, match="heads: a mask for 2 layers"):
            pruner.prune(head_mask=torch.ones(2, HEADS), keep_shape=keep_shape)
        with pytest.raises(ConfigError, match=r"neurons: the mask of layer 0 .* the layer has 24"):
            pruner.prune(ffn_mask=torch.ones(LAYERS, 23), keep_shape=keep_shape)
    assert isinstance(pruner.model, LertForPreTraining)
    empty = make_batch(4, masked=0)
    for batches in (None, [], [empty]):
        with pytest.raises(ConfigError, match="its scores need data"):
            TransformerPruner(make_model(), iterative(target_num_of_heads=2)).prune(batches)
    pruner.prune(head_mask=masks()[0])
    with pytest.raises(ConfigError, match=r"heads \[0, 2, 4\]"):
        pruner.prune(head_mask=masks()[0])
    with pytest.raises(ConfigError, match=r"heads \[0, 2, 4\]"):
        TransformerPruner(pruner.model)
