"""Which units stay: TextPruner's choice where it keeps what it was asked for, and exact beyond."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lert_ds.config import parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError, ModelError
from prune.masks import PruningConfig, Totals, check, choose, rank

with contextlib.redirect_stdout(io.StringIO()):  # a notice of a missing sentencepiece
    from textpruner import TransformerPruningConfig
    from textpruner.pruners.utils import generate_mask


def draw_scores(layers: int, units: int, seed: int) -> Tensor:
    """No two scores, and no two sums of groups, are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(layers, units, generator=generator)


def counts(masks: Sequence[Tensor]) -> list[int]:
    return [int(mask.sum()) for mask in masks]


@settings(max_examples=150, deadline=None)
@given(
    layers=st.integers(1, 5),
    groups=st.integers(1, 6),
    multiple_of=st.sampled_from([1, 2, 4]),
    even=st.booleans(),
    share=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_keeps_what_textpruner_keeps_where_that_is_what_was_asked(
    layers: int, groups: int, multiple_of: int, even: bool, share: float, seed: int
) -> None:
    units = groups * multiple_of
    scores = draw_scores(layers, units, seed)
    total = round(share * layers * units)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = generate_mask(scores, total, even, multiple_of=multiple_of).bool()
    least = layers * (1 if even else multiple_of)
    if total < least:
        return
    ours = choose(list(scores), total, even=even, multiple_of=multiple_of)
    step = 1 if even else multiple_of
    assert sum(counts(ours)) == total // step * step
    if int(theirs.sum()) == total // step * step:
        assert torch.equal(torch.stack(ours), theirs)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    minimum = draw(st.integers(0, 3))
    least = sum(min(minimum, size) for size in sizes)
    # Few values, so that there are ties.
    scores = [
        torch.tensor(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), dtype=torch.float32)
        for n in sizes
    ]
    return {
        "scores": scores,
        "total": draw(st.integers(least, sum(sizes))),
        "minimum": minimum,
        "even": draw(st.booleans()),
    }


@settings(max_examples=200, deadline=None)
@given(cases())
def test_keeps_exactly_so_many_of_layers_of_any_size(case: dict[str, Any]) -> None:
    masks, scores = choose(**case), case["scores"]
    assert sum(counts(masks)) == case["total"]
    for mask, values in zip(masks, scores, strict=True):
        assert mask.dtype == torch.bool
        assert mask.shape == values.shape
        assert mask.sum() >= min(case["minimum"], len(values))
        # In a layer the best stay, and of equal ones the first.
        order = sorted(range(len(values)), key=lambda unit, v=values: (-float(v[unit]), unit))
        assert sorted(order[: int(mask.sum())]) == mask.nonzero()[:, 0].tolist()
    if case["even"]:
        most = max(counts(masks))
        for mask, values in zip(masks, scores, strict=True):
            assert mask.sum() >= min(most - 1, len(values))
    else:
        spare = [
            float(values[mask].min())
            for mask, values in zip(masks, scores, strict=True)
            if mask.sum() > case["minimum"]
        ]
        gone = [float(v[~m].max()) for m, v in zip(masks, scores, strict=True) if not m.all()]
        assert not spare or not gone or min(spare) >= max(gone)


def test_what_does_not_come_out_even_goes_where_the_next_unit_scores_the_highest() -> None:
    scores = [torch.tensor([9.0, 1, 0]), torch.tensor([2.0, 3, 4]), torch.tensor([5.0, 6, 7])]
    assert counts(choose(scores, 5, even=True)) == [1, 2, 2]
    assert counts(choose(scores, 4, even=True)) == [1, 1, 2]


def test_no_unit_comes_back_without_another_going() -> None:
    scores = torch.tensor([[5.0, 6, 7], [1, 2, 3], [1, 2, 2]])
    with contextlib.redirect_stdout(io.StringIO()):
        assert generate_mask(scores, 3).sum() == 5  # of TextPruner
    assert counts(choose(list(scores), 3, even=False)) == [1, 1, 1]
    assert counts(choose(list(scores), 3, even=False, minimum=0)) == [3, 0, 0]
    assert counts(choose(list(scores), 4, even=False)) == [2, 1, 1]


@pytest.mark.parametrize("even", [True, False])
def test_none_and_all(even: bool) -> None:
    scores = [torch.rand(4), torch.rand(0), torch.rand(7)]
    assert counts(choose(scores, 0, even=even, minimum=0, multiple_of=2)) == [0, 0, 0]
    assert counts(choose(scores, 11, even=even, multiple_of=2)) == [4, 0, 7]


def test_a_layer_keeps_a_multiple_or_all_that_it_has() -> None:
    scores = [torch.arange(7.0), torch.arange(8.0) + 0.5, torch.arange(3.0)]
    for total in range(11, 19):
        kept = counts(choose(scores, total, even=False, multiple_of=4))
        assert sum(kept) <= total
        assert all(n % 4 == 0 or n == size for n, size in zip(kept, (7, 8, 3), strict=True))
        assert min(kept) >= 3
    negative = [-torch.arange(7.0)]
    assert counts(choose(negative, 4, even=False, multiple_of=4)) == [4]


def test_groups_are_ranked_by_their_sums() -> None:
    scores = [torch.tensor([10.0, 0, 0, 0]), torch.tensor([4.0, 4, 4, 3])]
    kept = choose(scores, 4, even=False, multiple_of=2, minimum=0)
    assert [mask.tolist() for mask in kept] == [[True, True, False, False]] * 2
    assert rank(scores, multiple_of=2, minimum=0).values.tolist() == [10, 8, 7, 0]
    assert rank(scores, multiple_of=2, minimum=3).reserved == 4


def test_scores_that_are_no_numbers_are_refused() -> None:
    for bad in (float("nan"), float("inf")):
        for even in (True, False):
            with pytest.raises(ModelError, match=r"layer 1 \(from 0\)"):
                choose([torch.ones(2), torch.tensor([1.0, bad])], 2, even=even)


def test_the_settings_have_the_names_and_the_range_of_textpruners() -> None:
    theirs = set(TransformerPruningConfig.__dataclass_fields__) - {"config_class", "use_logits"}
    assert theirs <= set(PruningConfig.model_fields)


def configure(**changes: Any) -> PruningConfig:
    return parse(PruningConfig, changes, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_num_of_heads": 0}, "target_num_of_heads = 0.*minimum_heads=0"),
        ({"target_ffn_size": 0}, "target_ffn_size = 0.*minimum_neurons=0"),
        ({"target_num_of_heads": -1}, "target_num_of_heads = -1"),
        ({"target_ffn_size": -4}, "target_ffn_size = -4"),
        ({"multiple_of": 0}, "multiple_of = 0"),
        ({"n_iters": 0}, "n_iters = 0"),
        ({"minimum_heads": -1}, "minimum_heads = -1"),
        ({"target_ffn_size": 10, "multiple_of": 4}, "no multiple of multiple_of = 4; .* 8 or 12"),
        ({"target_ffn_size": 3, "multiple_of": 4}, "ask for 4$"),
        ({"masks": "masks.safetensors"}, "masks is of pruning_method=masks"),
        ({"pruning_method": "masks"}, "needs masks = "),
        ({"pruning_method": "masks", "masks": "m", "target_ffn_size": 4}, "target_ffn_size is of"),
        ({"pruning_order": "heads"}, "pruning_order = 'heads'"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(**changes)


def test_nothing_to_prune_is_allowed() -> None:
    assert check(configure(), LertConfig()) == Totals(None, None)
    assert configure(target_num_of_heads=0, minimum_heads=0).target_num_of_heads == 0


SHAPE = LertConfig(
    hidden_size=32,
    num_attention_heads=4,
    num_hidden_layers=3,
    layer_attention_heads=[4, 2, 0],
    layer_intermediate_sizes=[16, 7, 8],
)


def test_totals_are_of_the_layers_that_stay() -> None:
    config = configure(target_num_of_heads=1.6, target_ffn_size=8)
    assert check(config, SHAPE) == Totals(5, 24)
    assert check(config, SHAPE, (0, 2)) == Totals(3, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_num_of_heads": 3}, "asks for 9 in 3 layers, but they have 6; .* at most 2$"),
        ({"target_ffn_size": 11}, "asks for 33 in 3 layers, but they have 31"),
        ({"target_num_of_heads": 0.3}, "minimum_heads = 1 they keep 2"),
        ({"target_ffn_size": 4, "minimum_neurons": 5}, "minimum_neurons = 5 they keep 15"),
        # 12, 7 and 8: whole groups, or all that a layer has.
        (
            {
                "target_ffn_size": 6,
                "minimum_neurons": 7,
                "multiple_of": 6,
                "ffn_even_masking": False,
            },
            "they keep 27",
        ),
    ],
)
def test_what_the_model_cannot_give_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(configure(**changes), SHAPE)
