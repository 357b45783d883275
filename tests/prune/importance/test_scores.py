import copy
import itertools
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.func import functional_call, grad
from torch.nn import functional

from lert_ds.config import ConfigError
from lert_ds.configuration_lert import LertConfig
from lert_ds.data.loader import training_batches
from lert_ds.data.masking import MaskingConfig
from lert_ds.data.sampler import MicroBatches
from lert_ds.data.shards import Corpus
from lert_ds.labels import IGNORE_INDEX, LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import masked_logits
from prune.importance import scores as scores_module
from prune.importance.pruner import importance
from prune.importance.rows import masked_rows
from prune.importance.scores import Method, Scores, score

TASKS = ("pos", "dep")
SHAPE = {
    "vocab_size": 45,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "tag_sets": {task: list(LTP_TAGS[task]) for task in TASKS},
}


def make_model(**changes: object) -> LertForPreTraining:
    """Weights large enough that attention and activations matter."""
    torch.manual_seed(0)
    return LertForPreTraining(LertConfig(**(SHAPE | {"initializer_range": 0.2} | changes)))


def make_batch(instances: int, seed: int = 0) -> Batch:
    """Rows of 6 to 10 tokens in 10 places, each with another count of masked positions."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 45, (instances, 10), generator=generator)
    lengths = 6 + torch.arange(instances) % 5
    real = torch.arange(10) < lengths[:, None]
    positions = torch.cat([row * 10 + torch.arange(1 + row % 3) * 2 for row in range(instances)])
    labels = torch.randint(5, 45, (len(positions),), generator=generator)
    tags = {
        task: torch.randint(0, len(LTP_TAGS[task]), (len(positions),), generator=generator)
        for task in TASKS
    }
    tags["pos"][::2] = IGNORE_INDEX
    tags["dep"][: len(positions) // 2] = IGNORE_INDEX
    return Batch(ids.where(real, 0), real, positions, labels, tags)


def pick(batch: Batch, rows: list[int]) -> Batch:
    """Return some examples of a batch."""
    examples = batch.masked_positions // 10
    chosen = [(examples == row).nonzero()[:, 0] for row in rows]
    places = torch.cat(chosen)
    moved = torch.cat([torch.full_like(c, number) for number, c in enumerate(chosen)])
    assert batch.attention_mask is not None
    return Batch(
        batch.input_ids[rows],
        batch.attention_mask[rows],
        moved * 10 + batch.masked_positions[places] % 10,
        batch.labels[places],
        {task: classes[places] for task, classes in batch.tags.items()},
    )


def gates_of(model: LertForPreTraining) -> dict[str, Tensor]:
    gates = {}
    for number, layer in enumerate(model.bert.encoder.layer):
        gates[f"{number}.heads"] = torch.ones(layer.attention.self.num_attention_heads)
        gates[f"{number}.neurons"] = torch.ones(layer.output.dense.in_features)
    return gates


def gated_logits(
    model: LertForPreTraining, gates: dict[str, Tensor], batch: Batch
) -> dict[str, Tensor]:
    """Return the logits with the columns of each output matrix multiplied by gates."""
    weights = {}
    for number, layer in enumerate(model.bert.encoder.layer):
        at = f"bert.encoder.layer.{number}"
        heads, neurons = gates[f"{number}.heads"], gates[f"{number}.neurons"]
        if len(heads):
            columns = heads.repeat_interleave(8)
            name = f"{at}.attention.output.dense.weight"
            weights[name] = layer.attention.output.dense.weight * columns
        if len(neurons):
            weights[f"{at}.output.dense.weight"] = layer.output.dense.weight * neurons
    output = functional_call(
        model,
        weights,
        (batch.input_ids,),
        {"attention_mask": batch.attention_mask, "masked_positions": batch.masked_positions},
    )
    return {"mlm": output.logits, **output.tag_logits}


def example_loss(logits: dict[str, Tensor], batch: Batch, tasks: tuple[str, ...]) -> Tensor:
    """Return the loss of a batch of one example."""
    loss = functional.cross_entropy(logits["mlm"], batch.labels)
    for task in tasks:
        known = batch.tags[task] != IGNORE_INDEX
        if known.any():
            loss = loss + functional.cross_entropy(logits[task][known], batch.tags[task][known])
    return loss


def gate_gradients(
    model: LertForPreTraining, batch: Batch, tasks: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return dL/dgate of a batch of one example, by differentiating gates."""
    model.eval()
    return grad(lambda gates: example_loss(gated_logits(model, gates, batch), batch, tasks))(
        gates_of(model)
    )


def assert_equal(scores: Scores, wanted: dict[str, Tensor], **tolerance: float) -> None:
    for number, (heads, neurons) in enumerate(zip(scores.heads, scores.neurons, strict=True)):
        torch.testing.assert_close(heads, wanted[f"{number}.heads"], **tolerance)
        torch.testing.assert_close(neurons, wanted[f"{number}.neurons"], **tolerance)


def flat(scores: Scores) -> Tensor:
    return torch.cat([*scores.heads, *scores.neurons])


@pytest.mark.parametrize("tasks", [(), TASKS])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"layer_attention_heads": [4, 0], "layer_intermediate_sizes": [0, 7]},
        {"layer_attention_heads": [0, 3], "layer_intermediate_sizes": [5, 0]},
    ],
)
def test_gate_gradient_is_the_mean_over_examples_of_what_autograd_says_of_gates(
    tasks: tuple[str, ...], shape: dict[str, list[int]]
) -> None:
    model = make_model(**shape)
    batch = make_batch(7)
    wanted = {name: torch.zeros_like(gates) for name, gates in gates_of(model).items()}
    for row in range(7):
        for name, gradient in gate_gradients(model, pick(batch, [row]), tasks).items():
            wanted[name] += gradient.abs() / 7
    found = score(model, [batch], "gate_gradient", masked_rows(tasks))
    assert found.examples == 7
    assert_equal(found, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["gate_gradient", "fisher"])
def test_scores_do_not_depend_on_how_examples_are_batched(method: Method) -> None:
    model, batch = make_model(), make_batch(8)
    # The labels that fisher draws follow the order of the masked positions.
    whole = score(model, [batch], method, masked_rows(TASKS))
    parts = [pick(batch, [0, 1, 2]), pick(batch, [3, 4, 5, 6]), pick(batch, [7])]
    if method == "gate_gradient":
        torch.testing.assert_close(
            flat(score(model, parts, method, masked_rows(TASKS))), flat(whole)
        )
    twice = score(model, [batch, batch], "gate_gradient", masked_rows(TASKS))
    once = score(model, [batch], "gate_gradient", masked_rows(TASKS))
    torch.testing.assert_close(flat(twice), flat(once))
    assert twice.examples == 2 * once.examples == 16
    assert whole.examples == 8


def test_fisher_is_the_expected_square_under_the_models_own_labels() -> None:
    model = make_model()
    one = pick(make_batch(1), [0])  # one masked position
    assert len(one.labels) == 1
    with torch.no_grad():
        probabilities = {
            name: z.softmax(-1)[0] for name, z in masked_logits(model.eval(), one).items()
        }
    mlm = {name: torch.zeros_like(gates) for name, gates in gates_of(model).items()}
    pos = copy.deepcopy(mlm)
    for label in range(45):
        known = one._replace(labels=torch.tensor([label]))
        for name, gradient in gate_gradients(model, known, ()).items():
            mlm[name] += probabilities["mlm"][label] * gradient**2
    for tag in range(len(LTP_TAGS["pos"])):
        tagged = one._replace(tags=one.tags | {"pos": torch.tensor([tag])})
        with_pos = gate_gradients(model, tagged, ("pos",))
        without = gate_gradients(model, tagged, ())
        for name in pos:
            pos[name] += probabilities["pos"][tag] * (with_pos[name] - without[name]) ** 2
    many = pick(one, [0] * 2500)
    # Labels are drawn independently, so the expected squares of the heads add up.
    for tasks, wanted in [((), mlm), (("pos",), {name: mlm[name] + pos[name] for name in mlm})]:
        found = score(model, [many], "fisher", masked_rows(tasks))
        names = [f"{n}.{kind}" for kind in ("heads", "neurons") for n in range(2)]
        truth = torch.cat([wanted[name] for name in names])
        assert (flat(found) - truth).norm() < 0.1 * truth.norm()


def test_fisher_reads_no_label_and_draws_anew_by_seed() -> None:
    model, batch = make_model(), make_batch(6)
    unlabelled = batch._replace(
        labels=torch.zeros_like(batch.labels),
        tags={task: torch.full_like(t, IGNORE_INDEX) for task, t in batch.tags.items()},
    )
    found = [
        flat(score(model, [some], "fisher", masked_rows(TASKS), seed=seed))
        for some, seed in [(batch, 0), (unlabelled, 0), (batch, 1)]
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_magnitude_is_the_norm_of_all_weights_of_a_unit() -> None:
    model = make_model(layer_attention_heads=[3, 0], layer_intermediate_sizes=[0, 7])
    found = score(model, [], "magnitude")
    layer = model.bert.encoder.layer[0]
    inputs = [getattr(layer.attention.self, name).weight for name in ("query", "key", "value")]
    for head in range(3):
        units = slice(head * 8, head * 8 + 8)
        parts = [w[units] for w in inputs] + [layer.attention.output.dense.weight[:, units].T]
        torch.testing.assert_close(found.heads[0][head], torch.cat(parts).norm().detach())
    layer = model.bert.encoder.layer[1]
    wanted = torch.cat([layer.intermediate.dense.weight, layer.output.dense.weight.T], 1).norm(
        dim=1
    )
    torch.testing.assert_close(found.neurons[1], wanted.detach())
    assert [len(heads) for heads in found.heads] == [3, 0]
    assert [len(neurons) for neurons in found.neurons] == [0, 7]


@pytest.mark.parametrize("method", ["gate_gradient", "fisher"])
def test_a_unit_that_is_zeroed_scores_zero(method: Method) -> None:
    model = make_model()
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.output.dense.weight[:, 8:16] = 0
        model.bert.encoder.layer[0].output.dense.weight[:, 5] = 0
    found = score(model, [make_batch(5)], method, masked_rows(TASKS))
    assert found.heads[1][1] == 0
    assert found.neurons[0][5] == 0
    assert (flat(found) == 0).sum() == 2


@pytest.mark.parametrize("method", ["gate_gradient", "fisher"])
def test_bf16_is_near_fp32(method: Method) -> None:
    model, batch = make_model(initializer_range=0.05), make_batch(64)
    fp32, bf16 = (
        score(model, [batch], method, masked_rows(TASKS), precision=precision)
        for precision in ("fp32", "bf16")
    )
    assert bf16.heads[0].dtype == torch.float32
    assert not torch.equal(flat(bf16), flat(fp32))
    assert (flat(bf16) - flat(fp32)).norm() < 0.1 * flat(fp32).norm()
    assert spearmanr(flat(bf16), flat(fp32))[0] > 0.97


@pytest.mark.parametrize("damaged", [False, True])
def test_the_model_is_as_before(damaged: bool) -> None:
    model = make_model().train()
    frozen = model.tag_head("dep").weight.requires_grad_(False)
    model.bert.embeddings.eval()
    before = copy.deepcopy(model.state_dict())
    batch = make_batch(4)
    if damaged:
        batch = batch._replace(labels=batch.labels[:-1])
        with pytest.raises(Exception, match="batch_size"):
            score(model, [batch], "gate_gradient")
    else:
        score(model, [batch], "gate_gradient")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert model.training
    assert model.bert.encoder.training
    assert not model.bert.embeddings.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_dropout_is_off_and_no_weight_has_a_gradient_while_scores_are_made() -> None:
    model = make_model().train()

    def batches() -> object:
        assert not any(module.training for module in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        yield make_batch(2)

    score(model, batches(), "gate_gradient")  # type: ignore[arg-type]


def test_processes_add_their_shares_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of a second process arrive in the one all-reduce; its mean is that over both."""
    model, batch = make_model(), make_batch(8)
    whole = score(model, [batch], "gate_gradient", masked_rows(TASKS))
    shares: list[Tensor] = []
    monkeypatch.setattr(scores_module, "sum_over_ranks", lambda sums: shares.append(sums) or sums)
    score(model, [pick(batch, [0, 1, 2])], "gate_gradient", masked_rows(TASKS))
    monkeypatch.setattr(scores_module, "sum_over_ranks", lambda sums: sums + shares[0])
    both = score(model, [pick(batch, [3, 4, 5, 6, 7])], "gate_gradient", masked_rows(TASKS))
    torch.testing.assert_close(flat(both), flat(whole))
    assert both.examples == 8


def test_ranks_draw_other_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model(), make_batch(8)
    first = score(model, [batch], "fisher")
    monkeypatch.setenv("RANK", "1")
    assert not torch.equal(flat(score(model, [batch], "fisher")), flat(first))


@pytest.mark.parametrize("method", ["gate_gradient", "fisher"])
def test_batches_with_nothing_masked_count_nowhere(method: Method) -> None:
    model, batch = make_model(), make_batch(4)
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = Batch(batch.input_ids, None, nothing, nothing, dict.fromkeys(TASKS, nothing))
    wanted, found = score(model, [batch], method), score(model, [empty, batch, empty], method)
    assert torch.equal(flat(found), flat(wanted))
    assert found.examples == 4
    with pytest.raises(ConfigError, match="no masked position"):
        score(model, [empty], method)


def test_a_model_with_nothing_left_to_prune_has_empty_scores() -> None:
    model = make_model(layer_attention_heads=[0, 0], layer_intermediate_sizes=[0, 0])
    found = score(model, [make_batch(3)], "gate_gradient")
    assert [len(s) for s in (*found.heads, *found.neurons)] == [0, 0, 0, 0]


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path) -> tuple[LertForPreTraining, list[Batch]]:
    """A model that has learnt the tiny corpus for a while, and batches of it."""
    corpus = Corpus([tiny_corpus])
    micro_batches = MicroBatches(len(corpus), 0, 8, 8)
    stream = training_batches(corpus, MaskingConfig(share=0.3, max_predictions=8), micro_batches)
    model = make_model(num_hidden_layers=3, initializer_range=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _, batch in itertools.islice(stream, 120):
        logits = masked_logits(model, batch)
        loss = functional.cross_entropy(logits["mlm"], batch.labels)
        loss = loss + functional.cross_entropy(logits["pos"], batch.tags["pos"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), [batch for _, batch in itertools.islice(stream, 32)]


@torch.no_grad()
def leave_one_out(
    model: LertForPreTraining, batches: list[Batch]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what removing one unit alone does to the loss of MLM and POS.

    Returns:
        `heads` and `neurons` of all layers to the rise of the mean loss, and to the mean over
        examples of the absolute change of their loss.
    """

    def losses(gates: dict[str, Tensor]) -> Tensor:
        found = []
        for batch in batches:
            logits = gated_logits(model, gates, batch)
            loss = functional.cross_entropy(logits["mlm"], batch.labels, reduction="none")
            loss += functional.cross_entropy(logits["pos"], batch.tags["pos"], reduction="none")
            found.append(loss.view(len(batch.input_ids), -1).mean(1))  # as many masked in each row
        return torch.cat(found)

    gates = gates_of(model)
    base = losses(gates)
    rises: dict[str, list[Tensor]] = {"heads": [], "neurons": []}
    changes: dict[str, list[Tensor]] = {"heads": [], "neurons": []}
    for name, values in gates.items():
        for unit in range(len(values)):
            values[unit] = 0
            difference = losses(gates) - base
            values[unit] = 1
            rises[name.split(".")[1]].append(difference.mean())
            changes[name.split(".")[1]].append(difference.abs().mean())
    return (
        {kind: torch.stack(values) for kind, values in rises.items()},
        {kind: torch.stack(values) for kind, values in changes.items()},
    )


def joined(batches: list[Batch]) -> Batch:
    """Return batches of one size without padding as one."""
    places = batches[0].input_ids.numel()
    positions = [batch.masked_positions + places * n for n, batch in enumerate(batches)]
    return Batch(
        torch.cat([batch.input_ids for batch in batches]),
        None,
        torch.cat(positions),
        torch.cat([batch.labels for batch in batches]),
        {task: torch.cat([batch.tags[task] for batch in batches]) for task in batches[0].tags},
    )


def test_scores_rank_as_exact_leave_one_out_does(
    trained: tuple[LertForPreTraining, list[Batch]],
) -> None:
    """A single neuron moves the loss of examples up and down: its mean says little of it."""
    model, batches = trained
    rises, changes = leave_one_out(model, batches[:16])
    for method in ("gate_gradient", "fisher"):
        found = score(model, batches[16:], method, masked_rows(("pos",)))
        heads, neurons = torch.cat(found.heads), torch.cat(found.neurons)
        assert spearmanr(heads, rises["heads"])[0] > 0.6
        assert spearmanr(neurons, changes["neurons"])[0] > 0.7
    textpruners = importance(model, batches[16:], masked_rows(("pos",)))
    assert spearmanr(torch.cat(textpruners.heads), rises["heads"])[0] > 0.6
    assert spearmanr(torch.cat(textpruners.neurons), changes["neurons"])[0] > 0.7
    # It adds the gradients of a batch up before it takes their size: all in one, examples cancel.
    in_one = importance(model, [joined(batches[16:])], masked_rows(("pos",)))
    assert spearmanr(torch.cat(in_one.neurons), changes["neurons"])[0] < 0.65
