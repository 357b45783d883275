import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM

from lert_ds import model_dir
from lert_ds.data.shards import MANIFEST

SMALL = [
    "architecture.layers=2", "architecture.hidden_size=32", "architecture.heads=2",
    "architecture.intermediate_size=64", "architecture.positions=32", "schedule.warmup_steps=2",
    "train.batch_size=8", "train.micro_batch_size=4", "train.learning_rate=3e-3",
    "train.report_every=5", "train.data_workers=0", "deepspeed=ds_configs/zero0_fp32.json",
]  # fmt: skip

Pretrain = Callable[..., str]


@pytest.fixture
def pretrain(
    tiny_corpus: Path,
    tmp_path: Path,
    command_line: Callable[..., str],
) -> Pretrain:
    """Run `lert-ds pretrain` in this process; returns what it printed."""

    def run(*changes: str, code: int = 0) -> str:
        # The configuration is small, on the tiny corpus, and its changes come last.
        arguments = [
            "pretrain", "pretrain-small", f"corpus={tiny_corpus}", f"output={tmp_path / 'run'}",
            *SMALL, "train.steps=10", "train.evaluate_every=5", "train.save_every=5", *changes,
        ]  # fmt: skip
        return command_line(arguments, code)

    return run


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def test_a_run_leaves_a_model_that_transformers_loads(pretrain: Pretrain, tmp_path: Path) -> None:
    pretrain("train.gradient_checkpointing=true")
    run = tmp_path / "run"
    valid = metrics(run, "valid")
    assert [record["step"] for record in valid] == [5, 10]
    assert {"mlm/loss", "mlm/perplexity", "mlm/accuracy"} <= set(valid[-1])
    for task in ("pos", "ner", "dep"):
        assert {f"{task}/loss", f"{task}/accuracy", f"{task}/macro_f1"} <= set(valid[-1])
    train = metrics(run, "train")
    # Step 4 of 10, POS in full weight from 16.65 % of the run on, so the mean of 0, .6, 1, 1, 1.
    assert train[0]["pos/weight"] == pytest.approx((0 + 1 / 1.665 + 3) / 5, rel=1e-5)

    ids = torch.tensor([[2, 5, 4, 19, 3]])
    plain = BertForMaskedLM.from_pretrained(run / "model").eval()
    ours, report = model_dir.load(run / "model")
    assert not report.random
    assert torch.equal(plain(ids).logits, ours.eval()(ids).logits)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["valid"]["mlm/loss"] == valid[-1]["mlm/loss"]
    assert summary["steps"] == 10
    assert "lert_fused" not in (run / "model/config.json").read_text()
    record = json.loads((run / "model/run.json").read_text())
    assert record["config"]["train"]["steps"] == 10
    assert record["versions"]["deepspeed"]


def test_the_model_learns(pretrain: Pretrain, tmp_path: Path) -> None:
    pretrain("train.steps=150", "train.evaluate_every=150", "train.save_every=0",
             "train.report_every=50", "architecture.dropout=0.0")  # fmt: skip
    valid = metrics(tmp_path / "run", "valid")[-1]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    entropy = summary["baselines"]["mlm/loss"]["unigram entropy"]
    assert valid["mlm/loss"] < entropy - 1
    assert valid["pos/accuracy"] > summary["baselines"]["pos/accuracy"]["majority tag"] + 0.15


def test_an_interrupted_run_resumes(pretrain: Pretrain, tmp_path: Path) -> None:
    pretrain(f"output={tmp_path / 'whole'}")
    pretrain()
    run = tmp_path / "run"
    # As if the run had been killed after the checkpoint of step 5.
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints/step-10")
    (run / "checkpoints/latest").write_text("step-5")
    said = pretrain()
    assert "resumed from step-5" in said
    whole, resumed = metrics(tmp_path / "whole", "valid"), metrics(run, "valid")
    assert resumed[-1]["step"] == 10
    assert resumed[-1]["mlm/loss"] == whole[-1]["mlm/loss"]
    first, _ = model_dir.load(tmp_path / "whole/model")
    second, _ = model_dir.load(run / "model")
    weights = second.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in first.state_dict().items())


def test_another_corpus_cannot_resume(
    pretrain: Pretrain, tiny_corpus: Path, tmp_path: Path
) -> None:
    pretrain()
    shutil.rmtree(tmp_path / "run/model")
    said = pretrain(f"corpus={tiny_corpus / 'held_out'}", code=2)
    assert "step-10: it was trained with another corpus" in said


def test_weights_of_another_model_are_a_start(pretrain: Pretrain, tmp_path: Path) -> None:
    pretrain(f"output={tmp_path / 'first'}", 'lip.tasks=["pos"]')
    said = pretrain(f"init_from={tmp_path / 'first/model'}", "train.learning_rate=1e-9")
    assert "output_ner" in said  # starts from random, and that is said
    assert "output_dep" in said
    first, _ = model_dir.load(tmp_path / "first/model")
    second, _ = model_dir.load(tmp_path / "run/model")
    key = "bert.encoder.layer.1.output.dense.weight"
    torch.testing.assert_close(first.state_dict()[key], second.state_dict()[key], atol=1e-6, rtol=0)


def test_a_corpus_without_tags_for_a_task_trains_the_others(
    pretrain: Pretrain, tmp_path: Path, tiny_corpus: Path
) -> None:
    copy = shutil.copytree(tiny_corpus, tmp_path / "copy")
    for path in (copy / MANIFEST, copy / "held_out" / MANIFEST):
        tree = json.loads(path.read_text("utf-8"))
        tree["tag_sets"]["ner"] = []
        path.write_text(json.dumps(tree), "utf-8")
    assert "no tags for ner" in pretrain(f"corpus={copy}")
    valid = metrics(tmp_path / "run", "valid")[-1]
    assert "dep/accuracy" in valid
    assert "ner/accuracy" not in valid


def test_mlm_alone(pretrain: Pretrain, tmp_path: Path) -> None:
    pretrain("lip.tasks=[]")
    assert not [name for name in metrics(tmp_path / "run", "train")[0] if name.startswith("pos")]


def test_the_dry_run_writes_nothing(pretrain: Pretrain, tmp_path: Path) -> None:
    said = pretrain("--dry-run", "--processes=2")
    assert "8 instances = 4 a micro-batch × 1 accumulated × 2 processes" in said
    assert '"heads": 2' in said
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_planned_before_there_is_a_corpus(pretrain: Pretrain, tmp_path: Path) -> None:
    said = pretrain(f"corpus={tmp_path / 'later'}", "architecture.positions=512", "--dry-run")
    assert "not there yet; reckoned with instances of 512 tokens" in said
    assert "memory a process" in said


def refused(pretrain: Pretrain, tmp_path: Path, *changes: str) -> str:
    said = pretrain(*changes, code=2)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
    return lines[0]


def test_an_unknown_key_is_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    said = refused(pretrain, tmp_path, "train.learning_rat=1")
    assert "train.learning_rat" in said
    assert "did you mean learning_rate?" in said


def test_a_wrong_type_is_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    assert "train.steps = 'many'" in refused(pretrain, tmp_path, "train.steps=many")


def test_a_micro_batch_that_does_not_divide_is_made_smaller(pretrain: Pretrain) -> None:
    said = pretrain("--dry-run", "train.micro_batch_size=3")
    assert "8 instances = 2 a micro-batch × 4 accumulated × 1 processes" in said


def test_a_batch_that_the_processes_cannot_share_is_refused(
    pretrain: Pretrain, tmp_path: Path
) -> None:
    said = refused(pretrain, tmp_path, "--dry-run", "--processes=3")
    assert "train.batch_size = 8 is no multiple of 3 processes" in said


def test_instances_longer_than_the_positions_are_refused(
    pretrain: Pretrain, tmp_path: Path
) -> None:
    said = refused(pretrain, tmp_path, "architecture.positions=16")
    assert "instances of 32 tokens, but the model has 16 positions" in said


def test_another_tokenizer_is_refused(
    pretrain: Pretrain, tmp_path: Path, tiny_corpus: Path
) -> None:
    pretrain(f"output={tmp_path / 'first'}")
    model = tmp_path / "first/model"
    (model / "tokenizer.json").unlink()
    pieces = (model / "vocab.txt").read_text("utf-8").splitlines()
    (model / "vocab.txt").write_text("\n".join([*pieces[:-1], "异"]) + "\n", "utf-8")
    said = refused(pretrain, tmp_path, f"init_from={model}")
    assert "tokenizer differs from that of the corpus" in said


def test_a_corpus_without_manifest_is_refused(
    pretrain: Pretrain, tmp_path: Path, tiny_corpus: Path
) -> None:
    copy = shutil.copytree(tiny_corpus, tmp_path / "copy")
    (copy / MANIFEST).unlink()
    assert f"{copy}: no {MANIFEST}" in refused(pretrain, tmp_path, f"corpus={copy}")


def test_a_truncated_shard_is_refused(
    pretrain: Pretrain, tmp_path: Path, tiny_corpus: Path
) -> None:
    copy = shutil.copytree(tiny_corpus, tmp_path / "copy")
    shard = copy / "shards/00001-000.pos.npy"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert str(shard) in refused(pretrain, tmp_path, f"corpus={copy}")


def test_an_altered_shard_is_refused(pretrain: Pretrain, tmp_path: Path, tiny_corpus: Path) -> None:
    copy = shutil.copytree(tiny_corpus, tmp_path / "copy")
    shard = copy / "shards/00001-000.pos.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    said = pretrain(f"corpus={copy}", code=2)
    assert said.count("error: ") == 1
    assert str(shard) in said
    # Hashing takes long: the run folder is held against other runs meanwhile.
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_misspelt_deepspeed_key_is_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimisation": {"stage": 2}}))
    said = refused(pretrain, tmp_path, f"deepspeed={path}")
    assert "zero_optimisation" in said
    assert "did you mean zero_optimization?" in said


def test_a_contradicting_deepspeed_number_is_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_batch_size": 64}))
    said = refused(pretrain, tmp_path, f"deepspeed={path}")
    assert "train_batch_size is 64 but the run says 8" in said


def test_a_model_folder_without_weights_is_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    pretrain(f"output={tmp_path / 'first'}")
    model = tmp_path / "first/model"
    (model / "model.safetensors").unlink()
    assert str(model) in refused(pretrain, tmp_path, f"init_from={model}")


def test_an_output_that_exists_is_refused_and_untouched(pretrain: Pretrain, tmp_path: Path) -> None:
    pretrain()
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    said = pretrain(code=2)
    assert "it holds a finished result (model/config.json)" in said
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    pretrain("overwrite=true")


def test_documents_that_do_not_see_each_other(pretrain: Pretrain, tmp_path: Path) -> None:
    losses = {}
    for across in ("true", "false"):
        pretrain(f"attend_across_documents={across}", "overwrite=true", "architecture.dropout=0.0")
        losses[across] = metrics(tmp_path / "run", "train")[-1]["mlm/loss"]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-5)  # one document an instance
