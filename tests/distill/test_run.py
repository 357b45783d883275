import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM

from lert_ds import model_dir, training
from lert_ds.configuration_lert import LertConfig
from lert_ds.labels import LTP_TAGS
from lert_ds.modeling_lert import LertForPreTraining

SMALL = [
    "student.layers=2", "student.hidden_size=16", "student.heads=2",
    "student.intermediate_size=32", "student.positions=32", "schedule.warmup_steps=2",
    "train.batch_size=8", "train.micro_batch_size=4", "train.learning_rate=3e-3",
    "train.report_every=5", "train.data_workers=0", "deepspeed=ds_configs/zero0_fp32.json",
    "teacher_precision=fp32",
]  # fmt: skip
MATCHES = (
    'distillation.intermediate_matches=[{feature="hidden", loss="hidden_mse", layers="uniform", '
    'proj="linear"}, {feature="qkv", loss="minilm_relation", layer_T=-1, layer_S=-1}]'
)

Distil = Callable[..., str]


def write_teacher(folder: Path, corpus: Path, **changes: Any) -> Path:
    shape = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4,
             "intermediate_size": 64, "max_position_embeddings": 32,
             "tag_sets": {task: list(tags) for task, tags in LTP_TAGS.items()}}  # fmt: skip
    torch.manual_seed(0)
    model = LertForPreTraining(LertConfig(vocab_size=45, **shape | changes))
    model_dir.save(model, corpus, folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model", tiny_corpus)


@pytest.fixture
def distil(
    tiny_corpus: Path,
    teacher: Path,
    tmp_path: Path,
    command_line: Callable[..., str],
) -> Distil:
    """Run `lert-ds distill` in this process; returns what it printed."""

    def run(*changes: str, code: int = 0) -> str:
        # The configuration is small, on the tiny corpus, and its changes come last.
        arguments = [
            "distill", "distill-large-to-small", f"corpus={tiny_corpus}", f"teacher={teacher}",
            f"output={tmp_path / 'run'}", *SMALL, "train.steps=10", "train.evaluate_every=5",
            "train.save_every=5", MATCHES, *changes,
        ]  # fmt: skip
        return command_line(arguments, code)

    return run


def refused(distil: Distil, tmp_path: Path, *changes: str) -> str:
    """Return the one line that a mistake gets; nothing may have been made."""
    said = distil(*changes, code=2)
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
    (line,) = [line for line in said.splitlines() if "error: " in line]
    return line


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model, report = model_dir.load(folder)
    assert not report.random
    return model.state_dict()


def test_a_run_leaves_a_student_that_transformers_loads(distil: Distil, tmp_path: Path) -> None:
    said = distil("train.gradient_checkpointing=true")
    run = tmp_path / "run"
    assert "student's layer 1 to teacher's layer 2" in said
    valid = metrics(run, "valid")
    assert [record["step"] for record in valid] == [5, 10]
    names = {"mlm/loss", "mlm/perplexity", "mlm/agreement", "mlm/kl", "kd/mlm", "kd/dep",
             "match/hidden_mse", "match/minilm_relation", "hard/loss", "pos/macro_f1"}  # fmt: skip
    assert names <= set(valid[-1])
    first, *_, last = metrics(run, "train")
    assert last["match/hidden_mse"] < first["match/hidden_mse"]
    plain = BertForMaskedLM.from_pretrained(run / "model").eval()
    assert (plain.config.num_hidden_layers, plain.config.hidden_size) == (2, 16)
    ours, report = model_dir.load(run / "model")
    assert not report.random
    ids = torch.tensor([[2, 5, 4, 19, 3]])
    assert torch.equal(plain(ids).logits, ours.eval()(ids).logits)


def test_the_summary_has_the_teachers_line_and_the_explicit_matches(
    distil: Distil, tmp_path: Path
) -> None:
    distil()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    for name in ("mlm/loss", "mlm/accuracy", "pos/accuracy", "dep/macro_f1"):
        assert "teacher" in summary["baselines"][name]
    assert "unigram entropy" in summary["baselines"]["mlm/loss"]
    for path in (tmp_path / "run/config.json", tmp_path / "run/model/run.json"):
        record = json.loads(path.read_text())
        first, second, last = record.get("config", record)["distillation"]["intermediate_matches"]
        assert [first["layer_T"], first["layer_S"]] == [2, 1]
        assert [second["layer_T"], second["layer_S"]] == [3, 2]
        assert second["proj"][:3] == ["linear", 16, 32]
        assert [last["layer_T"], last["layer_S"]] == [2, 1]  # counted from 0


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(distil: Distil, tmp_path: Path) -> None:
    distil()
    whole = tmp_path / "whole"
    (tmp_path / "run").rename(whole)
    distil()
    cut = tmp_path / "run"
    shutil.rmtree(cut / "model")
    (cut / "checkpoints/latest").write_text("step-5")
    shutil.rmtree(cut / "checkpoints/step-10")
    (cut / "metrics.jsonl").unlink()
    distil()
    # The losses after the interruption depend on student and projections alike.
    assert [r["loss"] for r in metrics(cut, "train")] == [metrics(whole, "train")[-1]["loss"]]
    again = weights_of(cut / "model")
    assert all(torch.equal(w, again[name]) for name, w in weights_of(whole / "model").items())


def test_a_checkpoint_holds_projections_and_no_teacher(
    distil: Distil, tmp_path: Path, teacher: Path
) -> None:
    distil()
    saved = load_file(tmp_path / "run/checkpoints/step-10/rank-00000.safetensors")
    names = {tuple(name.split("/")) for name in saved}
    assert {kind for kind, _ in names} == {"weights", "exp_avg", "exp_avg_sq"}
    assert {name.split(".")[0] for _, name in names} == {"student", "projections"}


@pytest.mark.parametrize("compiled", [False, True])
def test_batches_have_one_shape_where_layers_are_compiled(
    distil: Distil, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    given = []
    monkeypatch.setattr(training, "fit", lambda *arguments, **_: given.append(arguments[2]))
    distil(f"kernels.compile={'layers' if compiled else 'off'}")
    (data,) = given
    assert data.batching.keep_padding is compiled


def test_labels_only_trains_the_same_student_without_its_teacher(
    distil: Distil, tmp_path: Path
) -> None:
    distil("labels_only=true")
    valid = metrics(tmp_path / "run", "valid")[-1]
    assert "mlm/agreement" in valid
    assert not any(name.startswith(("kd/", "match/")) for name in valid)


def test_two_teachers_and_a_teacher_in_pieces(
    distil: Distil, tmp_path: Path, tiny_corpus: Path, teacher: Path
) -> None:
    other = write_teacher(tmp_path / "other", tiny_corpus, num_hidden_layers=4)
    both = f'teacher=["{teacher}", "{other}"]'
    distil(both, "teacher_weights=[0.25, 0.75]")
    whole = [r["loss"] for r in metrics(tmp_path / "run", "train")]
    lines = json.loads((tmp_path / "run/summary.json").read_text())["baselines"]["mlm/loss"]
    assert {"teacher 1", "teacher 2"} < set(lines)
    distil(both, "teacher_weights=[0.25, 0.75]", "teacher_partitioned=true", "overwrite=true")
    in_pieces = [r["loss"] for r in metrics(tmp_path / "run", "train")]
    assert in_pieces == pytest.approx(whole, abs=1e-5)


def test_a_bf16_teacher_is_nearly_the_same(distil: Distil, tmp_path: Path) -> None:
    distil()
    exact = metrics(tmp_path / "run", "train")[-1]["loss"]
    distil("teacher_precision=bf16", "overwrite=true")
    found = metrics(tmp_path / "run", "train")[-1]["loss"]
    assert found != exact
    assert found == pytest.approx(exact, rel=2e-2)


def test_a_dry_run_tells_the_matches_and_the_teacher(
    distil: Distil, tmp_path: Path, teacher: Path
) -> None:
    said = distil("--dry-run", "--processes", "2")
    assert f"{teacher}: " in said
    assert "hidden_mse" in said
    assert not (tmp_path / "run").exists()
    said = distil("--dry-run", f"corpus={tmp_path / 'later'}", "distillation.pos=0")
    assert "not there yet" in said


# What a user gets wrong, each before anything is trained.


def test_a_teacher_without_mlm_head(
    distil: Distil, tmp_path: Path, tiny_corpus: Path, teacher: Path
) -> None:
    from safetensors.torch import load_file, save_file

    headless = shutil.copytree(teacher, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("cls.")}
    save_file(kept, headless / "model.safetensors", {"format": "pt"})
    assert "no MLM head" in refused(distil, tmp_path, f"teacher={headless}")


def test_a_teacher_without_linguistic_heads(
    distil: Distil, tmp_path: Path, tiny_corpus: Path
) -> None:
    plain = write_teacher(tmp_path / "plain", tiny_corpus, tag_sets=None)
    assert "distillation.pos=0" in refused(distil, tmp_path, f"teacher={plain}")
    zeros = [f"distillation.{task}=0" for task in ("pos", "ner", "dep")]
    distil(f"teacher={plain}", *zeros)
    assert "pos/loss" in metrics(tmp_path / "run", "valid")[-1]


def test_a_teacher_of_other_tags(distil: Distil, tmp_path: Path, tiny_corpus: Path) -> None:
    tags = {task: list(tags) for task, tags in LTP_TAGS.items()} | {"ner": ["O", "B", "I"]}
    other = write_teacher(tmp_path / "other", tiny_corpus, tag_sets=tags)
    assert "distillation.ner=0" in refused(distil, tmp_path, f"teacher={other}")
    distil(f"teacher={other}", "distillation.ner=0")
    lines = json.loads((tmp_path / "run/summary.json").read_text())["baselines"]
    assert "teacher" in lines["pos/accuracy"]
    assert "teacher" not in lines["ner/accuracy"]  # its classes mean something else


def test_tokenizers_that_differ(distil: Distil, tmp_path: Path, teacher: Path) -> None:
    other = shutil.copytree(teacher, tmp_path / "other")
    vocabulary = (other / "vocab.txt").read_text("utf-8").splitlines()
    vocabulary[5], vocabulary[6] = vocabulary[6], vocabulary[5]
    (other / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    (other / "tokenizer.json").unlink()
    assert "tokenizer differs" in refused(distil, tmp_path, f"teacher={other}")


def test_a_teacher_given_as_student(distil: Distil, tmp_path: Path, teacher: Path) -> None:
    said = refused(distil, tmp_path, f'student={{model="{teacher}"}}')
    assert "this is the teacher" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("teacher=[]", "teacher is empty"),
        ("teacher=nowhere/at/all", "nowhere/at/all"),
        ("teacher_weights=[1.0, 2.0]", "teacher_weights has 2 numbers for 1 teachers"),
        ("teacher_weights=[0.0]", "nor all of them 0"),
        ("student.positions=16", "student.positions=32"),
        ("distillation.temperature=0", "distillation.temperature"),
        ("distillation.temprature=2", "temperature"),
        (
            "distillation={kd_loss_weight=0, hard_label_weight=0, intermediate_matches=[]}",
            "0",
        ),
        (
            'distillation.intermediate_matches=[{feature="hidden", loss="hidden_mse", layer_T=4, '
            'layer_S=1, proj="linear"}]',
            "intermediate_matches.0",
        ),
        (
            'distillation.intermediate_matches=[{feature="hidden", loss="hidden_mse", layer_T=1, '
            "layer_S=1}]",
            "proj",
        ),
        (
            'distillation.intermediate_matches=[{feature="hidden", loss="hidden_mse", layer_T=1, '
            'layer_S=1, proj=["linear", 16, 33]}]',
            "33",
        ),
        (
            'distillation.intermediate_matches=[{feature="attention", loss="attention_mse", '
            "layer_T=1, layer_S=1}]",
            "minilm_relation",
        ),
        ("train.micro_batch_size=0", "micro_batch_size"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    distil: Distil, tmp_path: Path, change: str, words: str
) -> None:
    assert words in refused(distil, tmp_path, change)
