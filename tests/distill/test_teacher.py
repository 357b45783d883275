from pathlib import Path
from typing import Any

import pytest
import torch

from distill import teacher
from distill.features import Taps
from distill.int8_teacher import Int8Linear
from lert_ds import model_dir
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError, ModelError
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.objective import Batch
from lert_ds.pretraining_objective import LipConfig, PretrainingObjective
from lert_ds.train.metrics import MetricSums
from lert_ds.training_data import DataFacts

FACTS = DataFacts(32, 45, 0, LTP_TAGS, 64, 13)
CPU = torch.device("cpu")


def save_teacher(folder: Path, corpus: Path, **changes: Any) -> str:
    shape = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 32,
             "tag_sets": {task: list(tags) for task, tags in LTP_TAGS.items()}}  # fmt: skip
    model = LertForPreTraining(LertConfig(vocab_size=45, **shape | changes))
    model_dir.save(model, corpus, folder)
    return str(folder)


def test_a_teacher_is_frozen_and_without_dropout(tiny_corpus: Path, tmp_path: Path) -> None:
    model = teacher.load_teacher(save_teacher(tmp_path / "model", tiny_corpus), tiny_corpus)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_a_teacher_is_placed_in_its_precision(
    tiny_corpus: Path, tmp_path: Path, precision: Any, dtype: torch.dtype
) -> None:
    model = teacher.load_teacher(save_teacher(tmp_path / "model", tiny_corpus), tiny_corpus)
    placed = teacher.place_teacher(model, CPU, precision, partitioned=False)
    assert {parameter.dtype for parameter in placed.parameters()} == {dtype}


def test_auto_is_bf16_where_the_machine_has_it(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_teacher(tmp_path / "model", tiny_corpus)
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        model = teacher.load_teacher(source, tiny_corpus)
        placed = teacher.place_teacher(model, CPU, "auto", partitioned=False)
        assert next(placed.parameters()).dtype == dtype


def test_int8_is_for_a_processor(tiny_corpus: Path, tmp_path: Path) -> None:
    source = save_teacher(tmp_path / "model", tiny_corpus)
    model = teacher.load_teacher(source, tiny_corpus)
    with pytest.raises(ConfigError, match="this trains on cuda; say bf16"):
        teacher.place_teacher(model, torch.device("cuda"), "int8", partitioned=False)
    placed = teacher.place_teacher(model, CPU, "int8", partitioned=False)
    query = placed.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert isinstance(query, Int8Linear)


@torch.no_grad()
def test_a_compiled_teacher_says_the_same(tiny_corpus: Path, tmp_path: Path) -> None:
    source = save_teacher(tmp_path / "model", tiny_corpus, num_hidden_layers=1)
    found = []
    for compiled in (False, True):
        model = teacher.load_teacher(source, tiny_corpus)
        placed = teacher.place_teacher(model, CPU, "fp32", partitioned=False, compiled=compiled)
        taps = Taps(placed, {"hidden": [0, 1], "qkv": [0]}, relation_heads=2)
        for length in (32, 24):
            ids = torch.arange(5, 5 + length).repeat(2, 1)
            logits = placed(ids).logits
            found.append([logits, *taps.take(None)["hidden"].values()])
    for one, other in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_teacher_with_too_few_positions_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    source = save_teacher(tmp_path / "model", tiny_corpus, max_position_embeddings=16)
    with pytest.raises(ModelError, match="16 positions"):
        teacher.check_teacher(source, FACTS, None, ())


def test_a_teacher_is_asked_only_for_heads_that_it_has(tiny_corpus: Path, tmp_path: Path) -> None:
    tags = {"pos": list(LTP_TAGS["pos"])}
    source = save_teacher(tmp_path / "model", tiny_corpus, tag_sets=tags)
    assert teacher.check_teacher(source, FACTS, None, ("pos",)).tasks == ("pos",)
    with pytest.raises(ModelError, match=r"no DEP head.*distillation\.dep=0"):
        teacher.check_teacher(source, FACTS, None, ("pos", "dep"))


def test_a_teacher_loses_the_pieces_that_its_student_lacks(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    source = save_teacher(tmp_path / "model", tiny_corpus)
    pieces = (tiny_corpus / "vocab.txt").read_text("utf-8").splitlines()
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    (smaller / "vocab.txt").write_text("\n".join(pieces[:5] + pieces[15:]) + "\n", "utf-8")
    assert teacher.check_teacher(source, FACTS, smaller, ()).vocab_size == 35
    whole = teacher.load_teacher(source, tiny_corpus)
    model = teacher.load_teacher(source, smaller)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    ids = torch.tensor([[2, 20, 30, 3]])
    ours = model(ids.where(ids < 5, ids - 10)).logits
    torch.testing.assert_close(ours, whole(ids).logits[..., [*range(5), *range(15, 45)]])


def test_the_line_is_what_an_evaluation_of_the_teacher_would_say(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    model = teacher.load_teacher(save_teacher(tmp_path / "model", tiny_corpus), tiny_corpus)
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    batches = [
        Batch(draw(45, 2, 8), None, torch.tensor([1, 4, 9]), draw(45, 3),
              {task: draw(len(classes), 3) for task, classes in LTP_TAGS.items()})
        for _ in range(2)
    ]  # fmt: skip
    one = teacher.Teacher("one", model, 0.5)
    found = teacher.teacher_lines([one], [batches], {t: LTP_TAGS[t] for t in ("pos", "dep")})
    objective = PretrainingObjective(model, LipConfig(tasks=("pos", "dep")), 10).eval()
    sums = MetricSums()
    for batch in batches:
        sums.add(objective(batch, step=0).metrics)
    expected = sums.reduce()
    assert set(found) == {name for name in expected if "/" in name and "weight" not in name}
    for name, values in found.items():
        assert values == {"teacher": pytest.approx(expected[name])}
    two = teacher.teacher_lines([one, one], [batches, batches], {})
    assert set(two["mlm/loss"]) == {"teacher 1", "teacher 2"}
