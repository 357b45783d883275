"""Layer maps, and matches resolved against the shapes of the models."""

import dataclasses
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.distillation_config import DistillationConfig, MatchConfig
from distill.matches import check_weights, describe_matches, layer_map, layers_of, resolve
from lert_ds import config
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError

KEY = "distillation.intermediate_matches"
counts = st.integers(1, 40)


def shape(layers: int, width: int, heads: int, **keys: Any) -> LertConfig:
    return LertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, **keys
    )


LARGE = shape(24, 1024, 16)
BASE = shape(12, 768, 12)
SMALL = shape(12, 256, 4)


@dataclasses.dataclass
class Setting:
    """A student and its teachers, asked about matches."""

    student: LertConfig = dataclasses.field(default_factory=lambda: SMALL)
    teachers: tuple[LertConfig, ...] = (LARGE,)

    def resolve(self, *matches: dict[str, Any], **keys: Any) -> DistillationConfig:
        configs = tuple(MatchConfig(**match) for match in matches)
        whole = DistillationConfig(intermediate_matches=configs, **keys)
        return resolve(whole, self.student, self.teachers)

    def refusal(self, *matches: dict[str, Any], **keys: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            self.resolve(*matches, **keys)
        return str(caught.value)


def hidden(loss: str = "hidden_mse", **keys: Any) -> dict[str, Any]:
    return {"feature": "hidden", "loss": loss, "proj": "linear", **keys}


def attention(loss: str = "attention_mse", **keys: Any) -> dict[str, Any]:
    return {"feature": "attention", "loss": loss, **keys}


def relations(**keys: Any) -> dict[str, Any]:
    return {"feature": "qkv", "loss": "minilm_relation", **keys}


def numbers(resolved: DistillationConfig) -> list[tuple[Any, Any]]:
    return [(match.layer_T, match.layer_S) for match in resolved.intermediate_matches]


@pytest.mark.parametrize(
    ("name", "student", "teacher", "expected"),
    [
        ("uniform", 12, 24, list(range(2, 25, 2))),
        ("uniform", 4, 12, [3, 6, 9, 12]),
        ("uniform", 3, 4, [1, 3, 4]),  # 1.33, 2.67, 4
        ("uniform", 4, 6, [2, 3, 5, 6]),  # 1.5 and 4.5 go up
        ("uniform", 4, 2, [1, 1, 2, 2]),
        ("uniform", 5, 2, [1, 1, 1, 2, 2]),  # 0.4 is no layer
        ("uniform", 3, 3, [1, 2, 3]),
        ("last", 3, 12, [10, 11, 12]),
        ("last", 2, 2, [1, 2]),
    ],
)
def test_a_named_map(name: Any, student: int, teacher: int, expected: list[int]) -> None:
    assert layer_map(name, student, teacher) == tuple(
        zip(expected, range(1, student + 1), strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(student=counts, teacher=counts)
def test_uniform_is_the_share_of_the_depth_rounded(student: int, teacher: int) -> None:
    pairs = layer_map("uniform", student, teacher)
    assert [k for _, k in pairs] == list(range(1, student + 1))
    exact = [floor(Fraction(k * teacher, student) + Fraction(1, 2)) for _, k in pairs]
    assert [layer for layer, _ in pairs] == [max(1, layer) for layer in exact]
    assert pairs[-1] == (teacher, student)


@settings(max_examples=60, deadline=None)
@given(student=counts, teacher=counts)
def test_last_keeps_the_distance_from_the_top(student: int, teacher: int) -> None:
    if student > teacher:
        with pytest.raises(ConfigError, match=r'layers = "last": the student has \d+ layers, more'):
            layer_map("last", student, teacher)
    else:
        pairs = layer_map("last", student, teacher)
        assert all(teacher - t == student - s for t, s in pairs)
        assert len(pairs) == student


def test_pairs_stay_as_they_are_but_must_exist() -> None:
    assert layer_map(((4, 2), (0, 0), (1, 2)), 2, 4) == ((4, 2), (0, 0), (1, 2))
    with pytest.raises(ConfigError, match=r"layers has \[5, 2\], but the teacher has no layer 5: "):
        layer_map(((5, 2),), 2, 4)
    with pytest.raises(ConfigError, match=r"^my\.key has \[4, 3\], but the student has no layer 3"):
        layer_map(((4, 3),), 2, 4, key="my.key")


def test_a_map_counts_from_1_and_textbrewer_by_feature() -> None:
    setting = Setting(student=shape(2, 256, 4), teachers=(shape(4, 256, 4),))
    for match, expected in (
        (hidden(layers="uniform"), [(2, 1), (4, 2)]),
        (hidden(layers=[(0, 0), (4, 2)]), [(0, 0), (4, 2)]),
        (attention(layers="uniform"), [(1, 0), (3, 1)]),
        (relations(layers=[(1, 1)]), [(0, 0)]),
    ):
        assert numbers(setting.resolve(match)) == expected


@pytest.mark.parametrize("loss", ["fsp", "gram", "nst", "mmd"])
def test_a_map_gives_a_loss_of_two_layers_each_twice(loss: str) -> None:
    setting = Setting(student=shape(2, 256, 4), teachers=(shape(4, 256, 4),))
    found = numbers(setting.resolve(hidden(loss, layers="last")))
    assert found == [((3, 3), (1, 1)), ((4, 4), (2, 2))]


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (hidden(layer_T=-1, layer_S=-13), (24, 0)),
        (hidden(layer_T=0, layer_S=12), (0, 12)),
        (hidden("nst", layer_T=(-2, 24), layer_S=(-12, 0)), ((23, 24), (1, 0))),
        (relations(layer_T=-1, layer_S=-12), (23, 0)),
    ],
)
def test_negative_numbers_count_from_the_end(match: dict[str, Any], expected: object) -> None:
    assert numbers(Setting().resolve(match)) == [expected]


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (
            hidden(layer_T=25, layer_S=1),
            ".layer_T = 25: the teacher has 24 layers, whose hidden is numbered 0 to 24, "
            "or -1 to -25 from the end",
        ),
        (hidden(layer_T=1, layer_S=-14), ".layer_S = -14: the student has 12 layers, whose hidden"),
        (hidden("fsp", layer_T=(1, 2), layer_S=(1, 13)), ".layer_S = 13: the student has 12"),
        (relations(layer_T=24, layer_S=1), ".layer_T = 24: the teacher has 24 layers, whose qkv"),
        (relations(layer_T=1, layer_S=12), "numbered 0 to 11, or -1 to -12 from the end"),
        (
            hidden(layers=[(2, 1), (26, 2)]),
            ".layers has [26, 2], but the teacher has no layer 26: it has 24, counted from 1",
        ),
        (hidden(layers=[(24, 13)]), ".layers has [24, 13], but the student has no layer 13"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(match: dict[str, Any], message: str) -> None:
    refusal = Setting().refusal(relations(layers="last"), match)
    assert refusal.startswith(f"{KEY}.1.")
    assert message in refusal


def test_the_last_layers_of_a_shallower_teacher_are_refused() -> None:
    deep = Setting(student=LARGE, teachers=(BASE,))
    message = deep.refusal(hidden(layers="last"))
    assert message.startswith(f'{KEY}.0.layers = "last": the student has 24 layers, more than')
    assert len(numbers(deep.resolve(hidden(layers="uniform")))) == 24


def test_a_projection_by_name_gets_the_widths() -> None:
    match = Setting().resolve(hidden(proj="tanh", layers="last")).intermediate_matches[0]
    assert match.proj == ("tanh", 256, 1024, {})


def test_a_projection_in_full_stays() -> None:
    proj = ("linear", 256, 1024, {"lr": 5e-3})
    match = Setting().resolve(hidden(proj=proj, layers="last")).intermediate_matches[0]
    assert match.proj == proj


def test_a_projection_of_the_wrong_size_is_refused() -> None:
    message = Setting().refusal(hidden(proj=("relu", 1024, 256, {}), layers="last"))
    assert message == (
        f"{KEY}.0.proj maps 1024 to 256, but the student is 256 wide and the teacher 1024; "
        'write "relu" alone, and the widths are filled in'
    )


@pytest.mark.parametrize("loss", ["hidden_mse", "cos", "pkd", "fsp", "gram"])
def test_widths_that_differ_need_a_projection(loss: str) -> None:
    match = hidden(loss, proj=None, layers="last")
    assert Setting().refusal(match) == (
        f"{KEY}.0: {loss} needs equal widths, but the student's hidden states have 256 and the "
        'teacher\'s 1024; add proj = "linear"'
    )
    equal = Setting(student=BASE, teachers=(BASE,)).resolve(match)
    assert equal.intermediate_matches[0].proj is None


@pytest.mark.parametrize("loss", ["nst", "mmd"])
def test_losses_between_positions_take_any_widths(loss: str) -> None:
    resolved = Setting().resolve(hidden(loss, proj=None, layers="last"))
    assert resolved.intermediate_matches[0].proj is None


@pytest.mark.parametrize("loss", ["attention_mse", "attention_mse_sum", "attention_ce"])
def test_unequal_heads_are_refused_where_they_are_compared(loss: str) -> None:
    match = attention(loss, layers=[(24, 12)])
    assert Setting().refusal(match) == (
        f"{KEY}.0.loss = {loss} needs as many heads in both, but layer 24 of the teacher has 16 "
        "and layer 12 of the student 4; use attention_ce_mean, or feature = qkv with "
        "minilm_relation"
    )
    assert Setting(student=BASE, teachers=(BASE,)).resolve(match | {"layers": "last"})
    # As many heads in that layer are enough.
    pruned = shape(1, 1024, 16, layer_attention_heads=[4])
    assert Setting(teachers=(pruned,)).resolve(attention(loss, layers=[(1, 3)]))


def test_the_mean_over_the_heads_takes_any_number() -> None:
    match = attention("attention_ce_mean", layers="last")
    assert len(Setting().resolve(match).intermediate_matches) == 12


@pytest.mark.parametrize("match", [attention("attention_ce_mean"), relations()])
def test_a_layer_without_heads_has_nothing_to_match(match: dict[str, Any]) -> None:
    pruned = shape(2, 256, 4, layer_attention_heads=[4, 0])
    message = Setting(student=pruned).refusal(match | {"layers": [(24, 2)]})
    assert message.startswith(
        f"{KEY}.0: layer 2 of the student has no attention heads (it was pruned)"
    )
    message = Setting(student=SMALL, teachers=(pruned,)).refusal(match | {"layers": [(2, 1)]})
    assert "layer 2 of the teacher has no attention heads" in message
    assert Setting(student=pruned).resolve(match | {"layers": [(24, 1)]}, hidden(layers=[(24, 2)]))


def test_a_match_that_is_there_twice_is_refused() -> None:
    message = Setting().refusal(hidden(layers="uniform"), hidden(layer_T=-1, layer_S=12))
    assert message == (
        f"{KEY}.1: hidden hidden_mse: student's layer 12 to teacher's layer 24 is there already, "
        f"from {KEY}.0; keep one of them, with the sum of the weights"
    )
    message = Setting().refusal(relations(layers=[(2, 1), (3, 1), (2, 1)]))
    assert message.startswith(f"{KEY}.0: qkv minilm_relation: student's layer 1 to teacher's laye")


def test_matches_that_differ_in_one_thing_are_kept() -> None:
    setting = Setting(teachers=(LARGE, LARGE))
    matches = [
        hidden(layers=[(2, 1)]),
        hidden(layers=[(2, 2)]),
        hidden(layers=[(3, 1)]),
        hidden("cos", layers=[(2, 1)]),
        hidden(layers=[(2, 1)], teacher=1),
    ]
    assert len(setting.resolve(*matches).intermediate_matches) == 5


def test_each_match_is_held_to_its_own_teacher() -> None:
    setting = Setting(teachers=(LARGE, BASE))
    found = setting.resolve(hidden(layers="last"), hidden(layers="last", teacher=1))
    of_second = [match for match in found.intermediate_matches if match.teacher == 1]
    assert [match.layer_T for match in of_second] == list(range(1, 13))
    assert all(match.proj == ("linear", 256, 768, {}) for match in of_second)
    message = setting.refusal(hidden(layers="last", teacher=2))
    assert message == f"{KEY}.0.teacher = 2: the last teacher is 1, counted from 0"


def test_a_teacher_below_half_the_depth_never_gives_its_embeddings() -> None:
    setting = Setting(teachers=(shape(2, 256, 4),))
    assert min(t for t, _ in numbers(setting.resolve(hidden(layers="uniform")))) == 1
    assert min(t for t, _ in numbers(setting.resolve(attention(layers="uniform")))) == 0


@pytest.mark.parametrize(
    ("student", "teachers", "expected"),
    [
        (SMALL, (LARGE,), 16),  # 16 divides 1024 and 256
        (BASE, (LARGE,), 16),
        (SMALL, (BASE,), 8),  # 12 does not divide 256; 8 is the largest of 768 and 256 below
        (shape(12, 100, 4), (BASE,), 4),
        (shape(12, 9, 1), (shape(12, 14, 2),), 1),
        (shape(12, 8, 1), (shape(12, 64, 16),), 8),  # never more than units
        (SMALL, (BASE, LARGE), 8),
        (SMALL, (LARGE, shape(12, 120, 4)), 8),
        (SMALL, (shape(12, 256, 4, layer_attention_heads=[3] * 12),), 4),  # 192 and 256
        (SMALL, (shape(12, 96, 6, layer_attention_heads=[5] * 12),), 4),  # 80 wide, not 96
    ],
)
def test_the_relation_heads_divide_every_width(
    student: LertConfig, teachers: tuple[LertConfig, ...], expected: int
) -> None:
    matches = [relations(layers=[(12, 12)], teacher=k) for k in range(len(teachers))]
    resolved = Setting(student, teachers).resolve(*matches)
    assert resolved.relation_heads == expected


def test_given_relation_heads_stay_where_they_fit() -> None:
    match = relations(layers=[(24, 12)])
    assert Setting().resolve(match, relation_heads=64).relation_heads == 64
    message = Setting().refusal(match, relation_heads=12)
    assert message == (
        "distillation.relation_heads = 12 does not divide 1024, the width of the queries in "
        "layer 24 of the teacher; take a divisor of 256, or leave it out"
    )
    pruned = shape(12, 256, 4, layer_attention_heads=[4] * 11 + [3])
    message = Setting(student=pruned).refusal(match, relation_heads=128)
    assert "does not divide 192, the width of the queries in layer 12 of the student" in message


def test_relation_heads_are_filled_in_for_relations_only() -> None:
    assert Setting().resolve(hidden(layers="last")).relation_heads is None


EVERYTHING = (
    hidden(layers="uniform", weight=2.0),
    hidden("cos", layers=[(0, 0)], proj=("relu", 256, 1024, {"lr": 5e-3, "weight_decay": 0.0})),
    hidden("nst", layers=[(24, 12)], proj=None),
    hidden(layer_T=-2, layer_S=-1, teacher=1),
    attention("attention_ce_mean", layers="last"),
    relations(layers=[(23, 12)]),
)


def test_what_is_resolved_is_explicit_and_stays() -> None:
    setting = Setting(teachers=(LARGE, BASE))
    resolved = setting.resolve(*EVERYTHING, temperature=8.0, temperature_scheduler=("flsw", 1, 2))
    assert resolve(resolved, setting.student, setting.teachers) == resolved
    assert resolved.temperature == 8.0
    for match in resolved.intermediate_matches:
        assert match.layers is None
        assert min(*layers_of(match)[0], *layers_of(match)[1]) >= 0
        assert not isinstance(match.proj, str)
    again = config.parse(DistillationConfig, config.dump(resolved), "again")
    assert again == resolved


def test_the_layers_of_a_match_are_the_teachers_and_the_students() -> None:
    resolved = Setting().resolve(
        hidden("nst", layer_T=(1, 2), layer_S=(0, 3)), hidden(layers="last")
    )
    assert layers_of(resolved.intermediate_matches[0]) == ((1, 2), (0, 3))
    assert layers_of(resolved.intermediate_matches[1]) == ((13,), (1,))


def test_the_matches_are_described_a_line_each_in_layers_from_1() -> None:
    resolved = Setting(teachers=(LARGE, BASE)).resolve(*EVERYTHING[1:])
    lines = describe_matches(resolved).splitlines()
    assert len(lines) == len(resolved.intermediate_matches) == 16
    assert lines[:4] == [
        "hidden cos: student's embeddings to teacher's embeddings of teacher 0, weight 1, "
        "relu projection 256 to 1024, lr 0.005, weight_decay 0",
        "hidden nst: student's layer 12 to teacher's layer 24 of teacher 0, weight 1",
        "hidden hidden_mse: student's layer 12 to teacher's layer 11 of teacher 1, weight 1, "
        "linear projection 256 to 768",
        "attention attention_ce_mean: student's layer 1 to teacher's layer 13 of teacher 0, "
        "weight 1",
    ]
    assert lines[-1] == (
        "qkv minilm_relation: student's layer 12 to teacher's layer 23 of teacher 0, weight 1, "
        "16 relation heads"
    )
    alone = describe_matches(Setting().resolve(hidden(layers=[(2, 1)], weight=0.5)))
    assert alone == (
        "hidden hidden_mse: student's layer 1 to teacher's layer 2, weight 0.5, "
        "linear projection 256 to 1024"
    )
    two = describe_matches(Setting().resolve(hidden("fsp", layer_T=(0, 2), layer_S=(0, 1))))
    assert two.startswith("hidden fsp: student's embeddings and layer 1 to teacher's embeddings an")
    assert describe_matches(DistillationConfig()) == "no layers are matched"


def test_weights_that_are_all_0_are_refused() -> None:
    nothing = {"kd_loss_weight": 0.0}
    with pytest.raises(ConfigError, match=r"^distillation\.kd_loss_weight and hard_label_weight "):
        check_weights(DistillationConfig(**nothing))
    idle = (MatchConfig(**hidden(layers="last", weight=0.0)),)
    with pytest.raises(ConfigError, match="there is nothing to learn; set one above 0"):
        check_weights(DistillationConfig(**nothing, intermediate_matches=idle))
    check_weights(DistillationConfig(**nothing), labels_only=True)
    check_weights(DistillationConfig(**nothing, hard_label_weight=0.1))
    check_weights(DistillationConfig(kd_loss_weight=0.1))
    match = (MatchConfig(**hidden(layers="last")),)
    check_weights(DistillationConfig(**nothing, intermediate_matches=match))
