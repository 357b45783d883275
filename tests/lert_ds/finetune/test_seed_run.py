"""One fine-tuning: what is reckoned before, what is started from, and what is not done twice."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lert_ds import model_dir
from lert_ds.config import parse
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError, ModelError
from lert_ds.finetune import seed_run
from lert_ds.finetune.finetune_config import FinetuneRun
from lert_ds.finetune.kinds import KINDS
from lert_ds.finetune.task_data import TaskData, open_task
from lert_ds.finetune.tasks import TASKS
from lert_ds.modeling_lert import LertForSequenceClassification, LertForTokenClassification

Make = Callable[..., tuple[FinetuneRun, TaskData]]


@pytest.fixture
def make(tiny_model: Path, task_files: Path, tmp_path: Path) -> Make:
    """A run and its data: task, changes of the table [train], other changes."""

    def build(name: str, train: Any = None, **changes: Any) -> tuple[FinetuneRun, TaskData]:
        tree = {
            "output": str(tmp_path / "run"),
            "model": str(tiny_model),
            "task": {"name": name, "data": str(task_files)},
            "deepspeed": "ds_configs/zero0_fp32.json",
            "train": {"epochs": 2, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3}
            | (train or {}),
            **changes,
        }
        run = parse(FinetuneRun, tree, "test")
        config = model_dir.read_config(tiny_model)
        return run, open_task(run.task, tiny_model, config)

    return build


@pytest.mark.parametrize("name", ["ocnli", "msra", "drcd"])
def test_a_plan_has_every_number(make: Make, name: str) -> None:
    run, data = make(name)
    plan = seed_run.plan(run, data, 1)
    model = KINDS[data.task.kind].model(plan.shape)  # type: ignore[call-arg]
    assert plan.numbers.parameters == sum(p.numel() for p in model.parameters())
    assert plan.numbers.micro_batch_size == 4
    # Operations are reckoned with rows of the mean length, memory with the longest.
    lengths = [len(feature.input_ids) for feature in data.train.features]
    longest = seed_run.flops_per_token(plan.numbers.shape, max(lengths), 0.0)
    assert 0 < plan.numbers.flops_per_token < longest
    assert plan.run.train.steps == -(-2 * len(lengths) // 4)


@pytest.mark.parametrize(
    ("train", "changes", "steps", "every", "save_every"),
    [
        ({}, {}, 8, 4, 4),  # 15 examples, 4 a step, 2 epochs
        ({}, {"evaluations_per_epoch": 2}, 8, 2, 2),
        ({}, {"evaluations_per_epoch": 100}, 8, 1, 1),
        ({"save_every": 0}, {}, 8, 4, 0),
        ({"epochs": 0, "steps": 3}, {}, 3, 3, 3),
        ({"epochs": 0.5}, {}, 2, 2, 2),
    ],
)
def test_an_evaluation_and_a_checkpoint_as_often_as_asked(
    make: Make, train: Any, changes: Any, steps: int, every: int, save_every: int
) -> None:
    plan = seed_run.plan(*make("ocnli", train, **changes), 1)
    found = plan.run.train
    assert (found.steps, found.evaluate_every, found.save_every) == (steps, every, save_every)


def test_the_machine_chooses_where_nothing_is_said(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = make("ocnli", deepspeed="auto")
    for multiplies, name in ((True, "cpu_bf16"), (False, "cpu_fp32")):
        monkeypatch.setattr(seed_run, "multiplies_bf16", lambda _, m=multiplies: m)
        if not torch.cuda.is_available():
            assert seed_run.plan(run, data, 1).run.deepspeed == Path(f"ds_configs/{name}.json")


def test_a_batch_that_does_not_divide_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size = 4 is no multiple of 3 processes"):
        seed_run.plan(*make("ocnli"), 3)


def test_first_weights_follow_from_the_seed(tiny_model: Path) -> None:
    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return seed_run.load(str(tiny_model), TASKS["ocnli"]).classifier.weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_a_folder_without_an_encoder_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "half"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if "layer.1" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"half: it has no weights for bert.encoder.layer.1"):
        seed_run.load(str(folder), TASKS["ocnli"])


def save_tuned(tiny_model: Path, folder: Path, cls: Any, labels: tuple[str, ...]) -> str:
    config = LertConfig(**{
        **model_dir.read_config(tiny_model).to_dict(),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    })  # fmt: skip
    model_dir.save(cls(config), tiny_model, folder)
    return str(folder)


@pytest.mark.parametrize(
    ("cls", "labels"),
    [
        (LertForSequenceClassification, ("0", "1")),  # another number of classes
        (LertForSequenceClassification, ("yes", "no", "maybe")),  # of other names
        (LertForSequenceClassification, ("neutral", "entailment", "contradiction")),  # other order
        (LertForTokenClassification, ("O", "B-X", "I-X")),  # another head of the same size
    ],
)
def test_a_model_of_other_classes_is_refused_before_its_weights_are_read(
    tiny_model: Path, tmp_path: Path, cls: Any, labels: tuple[str, ...]
) -> None:
    source = save_tuned(tiny_model, tmp_path / "tuned", cls, labels)
    (tmp_path / "tuned/model.safetensors").write_bytes(b"")
    message = f"tuned: it was fine-tuned for {', '.join(labels)}, not for OCNLI; start from a pre-"
    with pytest.raises(ModelError, match=message):
        seed_run.shape_for(source, TASKS["ocnli"])


def test_a_head_is_kept_where_the_classes_are_the_same(tiny_model: Path, tmp_path: Path) -> None:
    source = save_tuned(
        tiny_model, tmp_path / "tuned", LertForSequenceClassification, tuple(TASKS["xnli"].labels)
    )
    before, _ = model_dir.load(source, LertForSequenceClassification)
    after = seed_run.load(source, TASKS["ocnli"])
    assert torch.equal(before.classifier.weight, after.classifier.weight)
    # A question is no class: any encoder will do.
    seed_run.shape_for(source, TASKS["drcd"])
    assert seed_run.load(source, TASKS["drcd"]).qa_outputs.weight.shape == (2, 32)


def test_a_seed_is_trained_once_and_what_lacks_is_made_good(
    process_group: None, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = make("ocnli", {"epochs": 0, "steps": 2})
    plan = seed_run.plan(run, data, 1)
    first = seed_run.run_seed(plan, 7, data)
    assert first is not None
    assert (first["seed"], first["steps"]) == (7, 2)
    folder = run.output / "seed-7"
    monkeypatch.setattr(seed_run.training, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert seed_run.run_seed(plan, 7, data) == first
    # Stopped after the training, before its scores: they are made, and no more.
    (folder / "scores.json").unlink()
    (folder / "predictions-dev.json").unlink()
    again = seed_run.run_seed(plan, 7, data)
    assert again == first
    told = json.loads((folder / "predictions-dev.json").read_text("utf-8"))
    assert len(told) == len(data.dev.examples)
    other, _ = make("ocnli", {"epochs": 0, "steps": 2}, schedule={"warmup_share": 0.5})
    with pytest.raises(
        ConfigError, match=r"seed-7: this seed was trained with other settings \(sch"
    ):
        seed_run.run_seed(seed_run.plan(other, data, 1), 7, data)
