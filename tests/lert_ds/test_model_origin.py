"""What made a model, as the real configurations of the commands tell it."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from distill.run import DistillRun
from lert_ds.config import dump, parse
from lert_ds.finetune.finetune_config import FinetuneRun
from lert_ds.model_origin import Origin, origin_of, sources_of, title_of, with_sources
from lert_ds.pretrain import PretrainRun
from prune.prune_config import PruneRun
from prune.recover import RecoverRun, as_distillation, as_pretraining
from prune.run import PRUNED_FROM

TRAIN = {"steps": 10, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3}
TRAINING = {"output": "runs/out", "corpus": "corpora/wiki", "train": TRAIN}
PRUNED = {"layer_attention_heads": [1, 0], "layer_intermediate_sizes": [3, 4]}


def origin(cls: Any, tree: dict[str, Any], config: dict[str, Any] | None = None) -> Origin:
    return origin_of(config or {}, {"config": dump(parse(cls, tree, "test"))})


def test_pretraining() -> None:
    found = origin(PretrainRun, TRAINING)
    assert (found.kind, found.models) == ("pre-trained", ())
    assert "from random weights" in found.sentence
    found = origin(PretrainRun, TRAINING | {"init_from": "hfl/a"})
    assert (found.kind, found.models) == ("pre-trained", ("hfl/a",))
    assert "further, from the weights of {0}" in found.sentence


def test_distillation() -> None:
    found = origin(DistillRun, TRAINING | {"teacher": ["hfl/a", "runs/b/model"]})
    assert (found.kind, found.models) == ("distilled", ("hfl/a", "runs/b/model"))
    assert found.sentence == "A LERT distilled from {0} and {1}."
    alone = origin(DistillRun, TRAINING | {"teacher": "hfl/a", "labels_only": True})
    assert (alone.kind, alone.models) == ("pre-trained", ("hfl/a",))
    assert "without its teacher" in alone.sentence
    again = origin(DistillRun, TRAINING | {"teacher": "hfl/a", "student": {"model": "runs/s"}})
    assert (again.kind, again.models) == ("distilled", ("hfl/a", "runs/s"))
    assert again.sentence == "A LERT, {1}, trained again with {0} as its teacher."


def test_recovery_by_either_objective() -> None:
    tree = TRAINING | {"model": "runs/pruned/model", "teacher": "hfl/a"}
    taught = {"config": dump(as_distillation(parse(RecoverRun, tree, "test")))}
    found = origin_of(PRUNED, taught)
    assert (found.kind, found.models) == ("recovered", ("hfl/a", "runs/pruned/model"))
    assert found.sentence == "A pruned LERT, {1}, trained again with {0} as its teacher."
    tree = TRAINING | {"model": "runs/pruned/model", "objective": "pretraining"}
    alone = {"config": dump(as_pretraining(parse(RecoverRun, tree, "test")))}
    found = origin_of(PRUNED, alone)
    assert (found.kind, found.models) == ("recovered", ("runs/pruned/model",))


def test_pruning() -> None:
    config = dump(parse(PruneRun, {"output": "runs/p", "model": "hfl/a"}, "test"))
    found = origin_of(PRUNED, {PRUNED_FROM: "hfl/a", "config": config})
    assert (found.kind, found.models) == ("pruned", ("hfl/a",))


def test_fine_tuning() -> None:
    tree = {"output": "runs/f", "model": "hfl/a", "task": {"name": "ocnli"}, "train": TRAIN}
    found = origin(FinetuneRun, tree)
    assert (found.kind, found.models) == ("fine-tuned", ("hfl/a",))
    assert "for the task `ocnli`" in found.sentence


def test_conversion_and_what_is_not_known() -> None:
    assert origin_of({}, {"converted_from": "a/b.zip"}).kind == "converted"
    assert origin_of({}, None).kind == "unknown"
    for run in ({}, {"config": None}, {"config": [1]}, {"config": {"train": {}}}, {"step": 7}):
        assert origin_of({}, run).kind == "unknown"


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("runs/lert-small/model", "lert-small"),
        ("/home/somebody/runs/ocnli/seed-3/model", "ocnli"),
        ("corpora/wiki", "wiki"),
        ("corpora/wiki/", "wiki"),
        ("model", "model"),
        ("seed-3/model", "seed-3"),
        ("..", "model"),
        ("hfl/chinese-lert-base", "chinese-lert-base"),
    ],
)
def test_titles(path: str, title: str) -> None:
    assert title_of(path) == title


def test_sources_are_told_while_they_are_here(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hfl" / "local").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    cached = {"hfl/there", "hfl/local", "bert-base-chinese"}

    def look(name: str, file: str) -> Any:
        assert file == "config.json"
        return "/cache/config.json" if name in cached else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)
    told = {
        "corpus": [str(tiny_corpus), "/gone/corpus"],
        "teacher": ["hfl/there", "hfl/local", "runs/not-cached", "/abs/olute"],
        "init_from": None,
        "student": {"model": "bert-base-chinese"},
    }
    found = sources_of({"config": told})
    assert found["hub_models"] == ["bert-base-chinese", "hfl/there"]
    (corpus,) = found["corpora"]
    assert corpus["name"] == "tiny"
    assert (corpus["instances"], corpus["length"]) == (64, 32)
    assert str(tiny_corpus) not in json.dumps(found)
    assert sources_of({"config": {"corpus": 7, "student": "x", "teacher": {}}}) == {}
    assert sources_of({}) == {}
    run = {"config": told}
    assert with_sources(run) == {**run, "sources": found}
    assert with_sources({**run, "sources": {}}) == {**run, "sources": {}}
    assert with_sources({"step": 7}) == {"step": 7}


def test_a_manifest_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    for content in ("{", "[]", '{"instances": "many", "config": 3}'):
        (tmp_path / "manifest.json").write_text(content, "utf-8")
        found = sources_of({"config": {"corpus": str(tmp_path)}})
        assert "corpora" not in found or found["corpora"][0]["annotator"] is None
