import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import caching
from distill.caching import claim, refuse_full_disk
from distill.distillation_config import DistillationConfig
from distill.objective import DistillationObjective
from distill.teacher_cache import TeacherCache
from lert_ds import model_dir
from lert_ds.config import parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining
from lert_ds.training_data import DataFacts

SMALL = [
    "student.layers=2", "student.hidden_size=16", "student.heads=2",
    "student.intermediate_size=32", "student.positions=32", "schedule.warmup_steps=2",
    "train.batch_size=8", "train.micro_batch_size=4", "train.learning_rate=3e-3",
    "train.data_workers=0", "deepspeed=ds_configs/zero0_fp32.json", "teacher_precision=fp32",
]  # fmt: skip
MATCHES = (
    'distillation.intermediate_matches=[{feature="hidden", loss="hidden_mse", layers="uniform", '
    'proj="linear"}, {feature="qkv", loss="minilm_relation", layer_T=-1, layer_S=-1}]'
)
EPOCH_MICRO_BATCHES = 64 // 4
TOP_8 = ("teacher_cache_logits=top", "teacher_cache_top_k=8")
EXACTLY = "teacher_cache_logits=exact"

Distil = Callable[..., str]


def write_teacher(folder: Path, corpus: Path, layers: int = 3) -> Path:
    torch.manual_seed(0)
    config = LertConfig(
        vocab_size=45, num_hidden_layers=layers, hidden_size=32, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=32,
        tag_sets={task: list(tags) for task, tags in LTP_TAGS.items()},
    )  # fmt: skip
    model_dir.save(LertForPreTraining(config), corpus, folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model", tiny_corpus)


@pytest.fixture
def distil(
    tiny_corpus: Path, teacher: Path, tmp_path: Path, command_line: Callable[..., str]
) -> Distil:
    """Distil for three epochs with a cache; the folder of the run comes first."""

    def run(name: str, *changes: str, code: int = 0) -> str:
        arguments = [
            "distill", "distill-large-to-small", f"corpus={tiny_corpus}", f"teacher={teacher}",
            f"output={tmp_path / name}", *SMALL, "train.steps=24", "train.evaluate_every=0",
            "train.save_every=0", "train.report_every=1", f"teacher_cache={tmp_path / 'cache'}",
            "distillation.intermediate_matches=[]", *changes,
        ]  # fmt: skip
        return command_line(arguments, code)

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows whenever a teacher is asked in training."""
    found: list[int] = []
    ask = DistillationObjective._ask

    def counted(self: DistillationObjective, number: int, batch: Any) -> Any:
        if self.training:
            found.append(number)
        return ask(self, number, batch)

    monkeypatch.setattr(DistillationObjective, "_ask", counted)
    return found


def losses(run: Path) -> list[dict[str, float]]:
    """Return every loss of every step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    steps = [
        {name: value for name, value in line.items() if name == "loss" or "/" in name}
        for line in lines
        if line["kind"] == "train"
    ]
    for step in steps:
        for name in [name for name in step if name.startswith(("time/", "speed/", "memory/"))]:
            step.pop(name)
    assert len(steps) == 24
    return steps


def test_with_all_logits_what_is_read_trains_as_what_is_asked(
    distil: Distil, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    distil("reads", EXACTLY, MATCHES)
    assert len(asked) == EPOCH_MICRO_BATCHES
    with monkeypatch.context() as patched:
        patched.setattr(TeacherCache, "has", lambda _, rows: rows.indices < 0)
        distil("asks", EXACTLY, MATCHES)
    assert len(asked) == 4 * EPOCH_MICRO_BATCHES
    read, answered = losses(tmp_path / "reads"), losses(tmp_path / "asks")
    assert read[-1]["match/hidden_mse"] < read[0]["match/hidden_mse"]
    for one, other in zip(read, answered, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_another_run_asks_nothing(distil: Distil, tmp_path: Path, asked: list[int]) -> None:
    distil("first", *TOP_8)
    asked.clear()
    distil("second", *TOP_8)
    assert not asked
    # Also the first, of which a third was asked, learnt from what is kept.
    assert losses(tmp_path / "second") == losses(tmp_path / "first")


def test_each_masks_are_asked_once(distil: Distil, asked: list[int]) -> None:
    distil("run", "teacher_cache_masks=2", *TOP_8)
    assert len(asked) == 2 * EPOCH_MICRO_BATCHES


def test_a_student_without_its_teacher_sees_the_same_masks_and_keeps_nothing(
    distil: Distil, tmp_path: Path, asked: list[int]
) -> None:
    distil("alone", "labels_only=true", "distillation.hard_label_weight=1")
    assert not asked
    assert not (tmp_path / "cache").exists()


def test_another_teachers_answers_are_refused(
    distil: Distil, tmp_path: Path, tiny_corpus: Path
) -> None:
    distil("run", "train.steps=1", TOP_8[0])
    other = write_teacher(tmp_path / "other", tiny_corpus, layers=4)
    changes = {
        f"teacher={other}": "teachers: ",
        "seed=5": "seed: ",
        "masking.share=0.3": "masking.share: 0.15 → 0.3",
        "teacher_cache_masks=3": "masks: 1 → 3",
        "teacher_cache_top_k=9": "top_k: ",
        "distillation.temperature=2": "temperature: ",
        MATCHES: "features: ",
    }
    for change, told in changes.items():
        said = distil("again", TOP_8[0], change, code=2)
        (line,) = [line for line in said.splitlines() if "error: " in line]
        assert "made otherwise" in line
        assert told in line
        assert "name another folder" in line


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["teacher_partitioned=true"], "teacher_cache and teacher_partitioned are both given"),
        (["train.lengths=[[0, 16], [5, 32]]"], "teacher_cache and train.lengths"),
        (["distillation.kd_loss_type=mse", TOP_8[0]], "kd_loss_type = mse needs all logits"),
        (
            ['distillation.temperature_scheduler=["flsw", 1, 2]', TOP_8[0]],
            "set teacher_cache_logits=bytes",
        ),
        (["distillation.probability_shift=true", TOP_8[0]], "probability_shift needs all logits"),
    ],
)
def test_what_it_cannot_go_with_is_refused(
    distil: Distil, tmp_path: Path, changes: list[str], told: str
) -> None:
    said = distil("run", *changes, code=2)
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "error: " in line]
    assert told in line
    assert not (tmp_path / "run").exists()


def test_the_size_is_told_before(distil: Distil, tmp_path: Path) -> None:
    said = distil("run", "--dry-run", MATCHES)
    (line,) = [line for line in said.splitlines() if line.startswith("teacher cache ")]
    assert "64 instances, 1 mask each: up to 0.00 GiB" in line
    assert "features a token" in line
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"temperature": 2.0}, "top"),
        ({"temperature": 4.0}, "bytes"),
        ({"temperature": 1.0, "kd_loss_type": "mse"}, "bytes"),
        ({"temperature": 1.0, "temperature_scheduler": ["flsw", 1, 2]}, "bytes"),
        ({"temperature": 1.0, "probability_shift": True}, "bytes"),
    ],
)
def test_logits_are_kept_as_the_loss_needs_them(keys: dict[str, Any], kind: str) -> None:
    config = parse(DistillationConfig, keys, "test")
    assert caching.kind_of("auto", config) == kind
    assert caching.kind_of("exact", config) == "exact"


def test_a_layout_has_the_heads_and_what_the_matches_of_each_teacher_compare() -> None:
    keys = {
        "intermediate_matches": [
            {"feature": "hidden", "loss": "cos", "layer_T": 2, "layer_S": 1},
            {"feature": "hidden", "loss": "fsp", "layer_T": [0, 2], "layer_S": [0, 1]},
            {"feature": "qkv", "loss": "minilm_relation", "layer_T": 1, "layer_S": 1, "teacher": 1},
        ]
    }
    teacher = LertConfig(
        num_hidden_layers=3, hidden_size=32, num_attention_heads=4, layer_attention_heads=[4, 3, 4]
    )
    config = parse(DistillationConfig, keys, "test")
    layout = caching.layout_of(config, [teacher, teacher], {"mlm": 1000, "pos": 20}, "top", 64)
    assert layout.heads == ({"mlm": 1000, "pos": 20},) * 2
    assert layout.sources == (
        {("hidden", 0): 32, ("hidden", 2): 32},
        {("key", 1): 24, ("query", 1): 24, ("value", 1): 24},
    )
    facts = DataFacts(100, 1000, 0, {}, 50, 0)
    # 10 masked positions of two heads and two teachers, 100 tokens of 64 and of 72 numbers.
    size = 2 * 10 * (64 * 4 + 4 + 20 * 2) + 100 * (64 + 72) * 2
    assert caching.instance_bytes(layout, facts, 0.1) == size
    told = caching.describe(layout, 2, facts, 0.1)
    assert f"{size / 1024:,.0f} KiB an instance, 50 instances, 2 masks each" in told


def test_it_is_of_one_teacher_corpus_and_masking(tmp_path: Path) -> None:
    claim(tmp_path / "cache", {"seed": 1, "top_k": 8})
    claim(tmp_path / "cache", {"seed": 1, "top_k": 8})
    with pytest.raises(ConfigError, match=r"made otherwise \(seed: 1 → 2\); name another folder"):
        claim(tmp_path / "cache", {"seed": 2, "top_k": 8})
    (tmp_path / "text.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        claim(tmp_path, {"seed": 1})
    (tmp_path / "cache" / "cache.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        claim(tmp_path / "cache", {"seed": 1, "top_k": 8})


def test_a_full_disk_is_foreseen(tmp_path: Path) -> None:
    refuse_full_disk(tmp_path / "not" / "there", 10)
    with pytest.raises(ConfigError, match=r"grow to 953674\.3 GiB.*teacher_cache_logits=top"):
        refuse_full_disk(tmp_path, 1024e12)
