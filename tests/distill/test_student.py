import re
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.student import StudentConfig, chosen_layers, make_student, student_shape
from lert_ds import model_dir
from lert_ds.config import dump, parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.training_data import DataFacts

TAGS = {"pos": ("n", "v", "a"), "ner": (), "dep": ("HED", "ATT")}
FACTS = DataFacts(
    length=8, vocabulary_size=45, pad_id=0, tag_sets=TAGS, instances=4, held_out=0
)  # the vocabulary is that of the tiny corpus
TASKS = ("pos", "ner", "dep")
IDS = torch.tensor([[2, 17, 9, 30, 4, 3], [2, 8, 8, 21, 11, 3]])


def make_config(**changes: Any) -> StudentConfig:
    """A student of two layers, 8 wide, unless said otherwise."""
    sizes: dict[str, Any] = {
        "layers": 2, "hidden_size": 8, "heads": 2, "intermediate_size": 12, "positions": 10,
    }  # fmt: skip
    return StudentConfig(**{**sizes, **changes})


def make_teacher(seed: int = 0, **changes: Any) -> LertForPreTraining:
    sizes = {
        "vocab_size": 45,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
        "tag_sets": {task: list(tags) for task, tags in TAGS.items() if tags},
    }
    torch.manual_seed(seed)
    model = LertForPreTraining(LertConfig(**{**sizes, **changes}))
    for number, layer in enumerate(model.bert.encoder.layer, start=1):
        torch.nn.init.constant_(layer.output.dense.bias, number)  # by which a layer is known
    return model.eval()


def build(config: StudentConfig, teacher: LertForPreTraining, seed: int = 1) -> LertForPreTraining:
    shape = student_shape(config, teacher.config, FACTS, TASKS)
    torch.manual_seed(seed)
    return make_student(config, shape, teacher).eval()


def layers_taken(student: LertForPreTraining) -> list[int]:
    return [int(layer.output.dense.bias[0]) for layer in student.bert.encoder.layer]


def test_the_shape_is_the_configured_one_with_heads_for_what_has_tags() -> None:
    shape = student_shape(make_config(), make_teacher().config, FACTS, TASKS)
    assert (shape.num_hidden_layers, shape.hidden_size, shape.num_attention_heads) == (2, 8, 2)
    assert (shape.intermediate_size, shape.max_position_embeddings, shape.vocab_size) == (
        12,
        10,
        45,
    )
    assert shape.tag_sets == {"pos": ["n", "v", "a"], "dep": ["HED", "ATT"]}
    assert student_shape(make_config(), make_teacher().config, FACTS, ("dep",)).tasks == ("dep",)
    assert StudentConfig().number("hidden_size") == 256


def test_random_weights_follow_from_the_seed_alone() -> None:
    first = build(make_config(), make_teacher(seed=0))
    again = build(make_config(), make_teacher(seed=5, hidden_act="relu", num_hidden_layers=1))
    assert torch.equal(first(IDS).logits, again(IDS).logits)
    assert not torch.equal(
        first(IDS).logits, build(make_config(), make_teacher(), seed=2)(IDS).logits
    )
    assert layers_taken(first) == [0, 0]


def test_a_student_of_the_teachers_shape_is_the_teacher() -> None:
    # What the configuration has no key for, but the weights mean nothing without.
    teacher = make_teacher(
        hidden_act="relu", layer_norm_eps=1e-3, type_vocab_size=1, tie_word_embeddings=False
    )
    config = make_config(
        start="teacher", layers=4, hidden_size=16, heads=4, intermediate_size=24, positions=12
    )
    student = build(config, teacher)
    ours, theirs = student(IDS), teacher(IDS)
    assert torch.equal(ours.logits, theirs.logits)
    for task in ("pos", "dep"):
        assert torch.equal(ours.tag_logits[task], theirs.tag_logits[task])


@pytest.mark.parametrize(
    ("named", "student_layers", "teacher_layers", "wanted"),
    [
        ("uniform", 12, 24, list(range(2, 25, 2))),
        ("uniform", 2, 3, [2, 3]),
        ("last", 3, 8, [6, 7, 8]),
        ([1, 5, 5], 3, 6, [1, 5, 5]),
    ],
)
def test_the_layers_that_are_named_are_taken(
    named: str | list[int], student_layers: int, teacher_layers: int, wanted: list[int]
) -> None:
    teacher = make_teacher(num_hidden_layers=teacher_layers)
    tree = {"start": "teacher", "teacher_layers": named, "layers": student_layers}
    sizes = {"hidden_size": 8, "heads": 2, "intermediate_size": 12, "positions": 10}
    config = parse(StudentConfig, {**sizes, **tree}, "student")
    assert list(chosen_layers(config, teacher.config)) == wanted
    assert layers_taken(build(config, teacher)) == wanted


def test_the_same_seed_gives_the_same_fresh_tag_heads() -> None:
    teacher = make_teacher(tag_sets={"dep": ["HED", "ATT"]})
    config = make_config(start="teacher")
    one, other = build(config, teacher), build(config, teacher)
    assert torch.equal(one.tag_head("pos").weight, other.tag_head("pos").weight)
    assert one.tag_head("pos").weight.any()


def test_a_model_folder_is_the_student_as_it_is(tiny_corpus: Path, tmp_path: Path) -> None:
    pruned = make_teacher(
        seed=3,
        num_hidden_layers=2,
        layer_attention_heads=[0, 3],
        layer_intermediate_sizes=[24, 0],
        tag_sets={"dep": ["HED", "ATT"], "ner": ["O"]},
    )
    model_dir.save(pruned, tiny_corpus, tmp_path / "model")
    config = StudentConfig(model=str(tmp_path / "model"))
    teacher = make_teacher()
    shape = student_shape(config, teacher.config, FACTS, TASKS)
    assert [shape.heads_of(layer) for layer in range(2)] == [0, 3]
    assert shape.tasks == ("pos", "dep")
    student = build(config, teacher)
    assert student.config.tag_sets == shape.tag_sets
    assert torch.equal(student(IDS).logits, pruned(IDS).logits)
    assert torch.equal(student.tag_head("dep").weight, pruned.tag_head("dep").weight)


def test_a_configuration_that_was_written_down_can_be_read_again() -> None:
    for config in (StudentConfig(model="folder"), make_config(start="teacher")):
        assert parse(StudentConfig, dump(config), "config.json") == config


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model": "folder", "layers": 3, "dropout": 0.0}, "model = 'folder' .* layers, dropout"),
        ({"model": "folder", "start": "teacher"}, "take out start"),
        ({"teacher_layers": "last"}, "teacher_layers = 'last': only start = 'teacher'"),
        ({"start": "teacher", "layers": 2, "teacher_layers": [1]}, r"\[1\]: 1 layers for .* of 2"),
        ({"start": "teacher", "layers": 1, "teacher_layers": [0]}, r"\[0\]: layers count from 1"),
        ({"start": "teacher", "teacher_layers": "first"}, "teacher_layers = 'first'"),
        ({"size": "tiny"}, "size = 'tiny'"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(StudentConfig, tree, "student")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 5}, "student.layers = 5, but the teacher has only 4"),
        ({"hidden_size": 32, "heads": 8}, "student.hidden_size = 32, but the teacher has only 16"),
        ({"positions": 13}, "student.positions = 13, but the teacher has only 12"),
        ({"heads": 1}, "student.heads = 1 makes heads of 8 units, .* only 4"),
        ({"heads": 8}, "student.heads = 8, but layer 2 of the teacher has only 4"),
        (
            {"intermediate_size": 25},
            "student.intermediate_size = 25, but layer 2 of the teacher has only 24",
        ),
        ({"teacher_layers": (1, 5)}, "student.teacher_layers names layer 5, .* has 4"),
    ],
)
def test_what_the_teacher_lacks_is_refused(changes: dict[str, Any], message: str) -> None:
    teacher = make_teacher().config
    with pytest.raises(ConfigError, match=f"^{message}"):
        student_shape(make_config(start="teacher", **changes), teacher, FACTS, TASKS)
    if "teacher_layers" not in changes:  # random weights need nothing of the teacher
        student_shape(make_config(**changes), teacher, FACTS, TASKS)


def test_a_layer_that_was_pruned_too_far_is_refused_by_its_number() -> None:
    teacher = make_teacher(
        layer_attention_heads=[0, 4, 1, 4], layer_intermediate_sizes=[24, 24, 24, 5]
    ).config
    for layers, part in (((1, 2), "heads"), ((2, 3), "heads"), ((2, 4), "intermediate_size")):
        config = make_config(start="teacher", teacher_layers=layers)
        number = {(1, 2): 1, (2, 3): 3, (2, 4): 4}[layers]
        with pytest.raises(ConfigError, match=rf"^student\.{part} = .* layer {number} of"):
            student_shape(config, teacher, FACTS, TASKS)
    fitting = make_config(start="teacher", layers=1, teacher_layers=(2,))
    student_shape(fitting, teacher, FACTS, TASKS)


def test_another_vocabulary_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    teacher = make_teacher(vocab_size=46).config
    with pytest.raises(ConfigError, match=r"^the corpus has .* of 45 .* one of 46"):
        student_shape(make_config(), teacher, FACTS, TASKS)
    folder = tmp_path / "model"
    model_dir.save(make_teacher(), tiny_corpus, folder)
    with pytest.raises(ConfigError, match=re.escape(f"student.model = {str(folder)!r} has")):
        student_shape(StudentConfig(model=str(folder)), teacher, FACTS, TASKS)
