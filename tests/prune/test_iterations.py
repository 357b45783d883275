"""The loop against TextPruner's own, on the same model and data."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM

from lert_ds.config import parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.model_surgery import Cut, cut, cut_config
from lert_ds.modeling_lert import LertForPreTraining
from prune.importance.scores import Scores
from prune.iterations import prune_iteratively
from prune.masks import PruningConfig

with contextlib.redirect_stdout(io.StringIO()):  # a notice of a missing sentencepiece
    from textpruner import GeneralConfig, TransformerPruner, TransformerPruningConfig

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_attention_heads": 8,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "max_position_embeddings": 12,
    "initializer_range": 0.3,
}


def make_model(**changes: Any) -> LertForPreTraining:
    torch.manual_seed(0)
    return LertForPreTraining(LertConfig(**(SHAPE | changes))).eval()


def make_data(batches: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 40, (batches, 4, 12), generator=generator)
    masked = torch.rand(ids.shape, generator=generator) < 0.3
    return [
        {
            "input_ids": row.where(~mask, 4),
            "attention_mask": torch.ones_like(row),
            "labels": row.where(mask, -100),
        }
        for row, mask in zip(ids, masked, strict=True)
    ]


class TextPrunersScore:
    """TextPruner's formula on a model of any shape; remembers the shapes that it was given."""

    def __init__(self, *, input_side: bool) -> None:
        self.input_side = input_side
        self.seen: list[LertConfig] = []

    def __call__(self, model: LertForPreTraining) -> Scores:
        self.seen.append(model.config)
        model.eval()
        layers = model.bert.encoder.layer
        heads = [torch.zeros(layer.attention.self.num_attention_heads) for layer in layers]
        neurons = [torch.zeros(layer.intermediate.dense.out_features) for layer in layers]
        examples = 0
        for batch in make_data():
            logits = model(batch["input_ids"], batch["attention_mask"]).logits
            model.zero_grad()
            functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
            examples += len(batch["labels"])
            for number, layer in enumerate(layers):
                if len(heads[number]):
                    products = of_weight(layer.attention.output.dense.weight).sum(0)
                    heads[number] += products.view(len(heads[number]), -1).sum(1).abs()
                if len(neurons[number]):
                    dense = layer.intermediate.dense
                    if self.input_side:
                        inputs = of_weight(dense.weight).sum(1) + of_weight(dense.bias)
                        neurons[number] += inputs.abs()
                    neurons[number] += of_weight(layer.output.dense.weight).sum(0).abs()
        model.zero_grad()
        return Scores(
            "textpruner",
            tuple(sums / examples for sums in heads),
            tuple(sums / examples for sums in neurons),
            examples,
        )


def of_weight(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return (weight.grad * weight).detach()


def configure(**changes: Any) -> PruningConfig:
    return parse(PruningConfig, changes, "test")


def textpruners_masks(
    model: LertForPreTraining, folder: Path, changes: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    bert = BertForMaskedLM(BertConfig(**SHAPE))
    bert.load_state_dict(model.state_dict())
    pruner = TransformerPruner(
        bert,
        TransformerPruningConfig(pruning_method="iterative", **changes),
        GeneralConfig("cpu", str(folder)),
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pruner.prune(make_data(), keep_shape=True, save_model=False)
    return pruner.head_mask.bool(), pruner.ffn_mask.bool()


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("n_iters", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {"pruning_order": None},
        {"pruning_order": "head-first"},
        {"pruning_order": "ffn-first"},
        {"head_even_masking": False, "ffn_even_masking": False},
        {"head_even_masking": False, "ffn_even_masking": False, "multiple_of": 4},
        {"ffn_even_masking": False, "multiple_of": 4, "pruning_order": "ffn-first"},
        {"target_num_of_heads": 8, "pruning_order": "head-first"},
    ],
    ids=str,
)
def test_masks_are_those_of_textpruner(
    tmp_path: Path, changes: dict[str, Any], n_iters: int, expanded: bool
) -> None:
    # 8 to 5 heads and 48 to 24 neurons in three layers come out even in each of three iterations.
    changes = {"target_num_of_heads": 5, "target_ffn_size": 24, "n_iters": n_iters} | changes
    model = make_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    heads, neurons = textpruners_masks(model, tmp_path, changes)
    assert heads.sum() == 3 * changes["target_num_of_heads"]
    assert neurons.sum() == 3 * 24
    score = TextPrunersScore(input_side=changes.get("ffn_even_masking", True))
    found = prune_iteratively(model, configure(**changes), score, expanded=expanded)
    assert found.neurons is not None
    assert found.heads == tuple(tuple(row) for row in heads.tolist())
    assert torch.equal(torch.stack(found.neurons), neurons)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def sizes(config: LertConfig) -> tuple[list[int], list[int]]:
    layers = range(config.num_hidden_layers)
    return [config.heads_of(n) for n in layers], [config.intermediate_size_of(n) for n in layers]


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        (None, [(24, 144), (21, 128), (18, 112)]),
        ("head-first", [(24, 144), (21, 144), (21, 128), (18, 128), (18, 112), (16, 112)]),
        ("ffn-first", [(24, 144), (24, 128), (21, 128), (21, 112), (18, 112), (18, 96)]),
    ],
)
def test_counts_fall_step_by_step(order: str | None, wanted: list[tuple[int, int]]) -> None:
    score = TextPrunersScore(input_side=False)
    config = configure(
        target_num_of_heads=16 / 3,
        target_ffn_size=32,
        head_even_masking=False,
        ffn_even_masking=False,
        n_iters=3,
        pruning_order=order,
    )
    found = prune_iteratively(make_model(), config, score)
    totals = [(sum(heads), sum(neurons)) for heads, neurons in map(sizes, score.seen)]
    assert totals == wanted
    heads, neurons = sizes(cut_config(LertConfig(**SHAPE), found))
    assert (sum(heads), sum(neurons)) == (16, 96)


@pytest.mark.parametrize("order", [None, "head-first"])
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_one_kind_alone(kind: str, order: str | None) -> None:
    target = {"target_num_of_heads": 2} if kind == "heads" else {"target_ffn_size": 10}
    score = TextPrunersScore(input_side=True)
    config = configure(n_iters=2, pruning_order=order, **target)
    found = prune_iteratively(make_model(), config, score)
    assert (found.heads is None, found.neurons is None) == (kind != "heads", kind != "neurons")
    assert len(score.seen) == 2
    heads, neurons = sizes(cut_config(LertConfig(**SHAPE), found))
    assert (heads, neurons) == (([2] * 3, [48] * 3) if kind == "heads" else ([8] * 3, [10] * 3))


def test_with_nothing_to_prune_nothing_is_scored() -> None:
    score = TextPrunersScore(input_side=True)
    config = configure(n_iters=4)
    for layers in (None, (0, 2)):
        found = prune_iteratively(make_model(), config, score, layers=layers)
        assert (found.heads, found.neurons, found.layers) == (None, None, layers)
    assert not score.seen


@pytest.mark.parametrize("expanded", [False, True])
def test_layers_are_dropped_beforehand(expanded: bool) -> None:
    model = make_model()
    score = TextPrunersScore(input_side=True)
    config = configure(target_num_of_heads=3, target_ffn_size=20, n_iters=2)
    found = prune_iteratively(model, config, score, layers=(0, 2), expanded=expanded)
    assert [seen.num_hidden_layers for seen in score.seen] == [2, 2]
    base = cut(model, Cut(layers=(0, 2)))
    alone = prune_iteratively(base, config, TextPrunersScore(input_side=True))
    assert found.heads is not None
    assert alone.heads is not None
    assert found.neurons is not None
    assert alone.neurons is not None
    assert (found.heads[0], found.heads[2]) == alone.heads
    assert torch.equal(found.neurons[0], alone.neurons[0])
    assert torch.equal(found.neurons[2], alone.neurons[1])
    assert all(found.heads[1])
    assert bool(found.neurons[1].all())
    assert sizes(cut_config(model.config, found)) == ([3, 3], [20, 20])


def test_a_pruned_model_is_pruned_further() -> None:
    model = make_model(layer_attention_heads=[8, 0, 3], layer_intermediate_sizes=[48, 6, 0])
    config = configure(target_num_of_heads=2, target_ffn_size=12, n_iters=3)
    for expanded in (False, True):
        score = TextPrunersScore(input_side=True)
        found = prune_iteratively(model, config, score, expanded=expanded)
        assert sizes(cut_config(model.config, found)) == ([3, 0, 3], [30, 6, 0])


@pytest.mark.parametrize("layers", [None, (1, 2)])
def test_what_is_left_is_refitted_before_it_is_scored(layers: Sequence[int] | None) -> None:
    model = make_model()
    order: list[tuple[str, Any]] = []

    def refit(smaller: LertForPreTraining, shape: Cut) -> None:
        wanted = cut(model, shape)
        for one, other in zip(smaller.parameters(), wanted.parameters(), strict=True):
            assert torch.equal(one, other)
        with torch.no_grad():
            smaller.bert.embeddings.word_embeddings.weight.zero_()
        order.append(("refit", sizes(smaller.config)))

    def score(smaller: LertForPreTraining) -> Scores:
        refitted = not smaller.bert.embeddings.word_embeddings.weight.any()
        assert refitted == (bool(order) and order[-1][0] == "refit")
        order.append(("score", sizes(smaller.config)))
        return TextPrunersScore(input_side=True)(smaller)

    config = configure(target_num_of_heads=4, n_iters=2)
    prune_iteratively(model, config, score, layers=layers, refit=refit)
    names = [name for name, _ in order]
    dropped = [] if layers is None else ["refit"]
    assert names == [*dropped, "score", "refit", "score"]


def test_what_the_model_does_not_have_is_refused_before_anything_is_scored() -> None:
    score = TextPrunersScore(input_side=True)
    with pytest.raises(ConfigError, match="target_num_of_heads"):
        prune_iteratively(make_model(), configure(target_num_of_heads=9), score)
    assert not score.seen
