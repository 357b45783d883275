"""The sections that run.json fills."""

from typing import Any

from lert_ds import card_run_text

RUN: dict[str, Any] = {
    "steps": 1000,
    "chosen_step": 900,
    "samples": 64_000,
    "processes": 2,
    "seconds": 12.5,
    "valid": {"mlm/loss": 2.125, "mlm/accuracy": 0.5, "pos/macro_f1": 0.25, "bad": "x"},
    "baselines": {"mlm/loss": {"unigram entropy": 6.5}, "pos/accuracy": {"majority tag": 0.2}},
    "versions": {"lert-ds": "0.1.0", "commit": "abc", "none": None},
    "corpus": "f" * 64,
    "config": {
        "corpus": ["/home/me/corpora/wiki", "corpora/news"],
        "corpus_valid": [],
        "deepspeed": "/home/me/ds_configs/zero2_bf16.json",
        "seed": 7,
        "optimizer": {"name": "adamw"},
        "train": {"steps": 1000, "batch_size": 64, "learning_rate": 1e-4},
    },
    "sources": {
        "corpora": [
            {"name": "wiki", "instances": 9876, "length": 128, "tokens": 12, "annotator": "ltp"}
        ]
    },
}


def test_data_with_what_is_known_of_each_corpus() -> None:
    text = card_run_text.data(RUN)
    assert "| `wiki` | 9,876 | 128 | 12 | `ltp` |" in text
    assert "| `news` | – | – | – | – |" in text
    assert "f" * 64 in text
    assert "/home" not in text
    task = {"config": {"task": {"name": "ocnli", "data": "/home/me/tasks"}}}
    assert "The files of the task `ocnli`" in card_run_text.data(task)
    converted = {"converted_from": "x.zip", "files": {"a.index": "e" * 64}}
    assert f"| `a.index` | `{'e' * 64}` |" in card_run_text.data(converted)
    assert card_run_text.data(None) == card_run_text.data({}) == ""


def test_training() -> None:
    text = card_run_text.training(RUN)
    for row in (
        "steps | 1,000",
        "weights of step | 900",
        "batch | 64 instances",
        "instances seen | 64,000",
        "tokens seen | 8,192,000",
        "learning rate | 0.0001",
        "optimizer | `adamw`",
        "precision | bf16",
        "DeepSpeed | `zero2_bf16.json`",
        "seed | 7",
    ):
        assert f"| {row} |" in text, row
    assert "/home" not in text
    assert card_run_text.training(None) == card_run_text.training({"config": {"train": 3}}) == ""
    for chosen in (None, 1000):
        last = card_run_text.training({**RUN, "chosen_step": chosen})
        assert "weights of step" not in last


def test_results_beside_baselines_or_by_stage() -> None:
    lines = card_run_text.results(RUN).splitlines()
    assert "| metric | this model | `unigram entropy` | `majority tag` |" in lines
    assert "| `mlm/loss` | 2.125 | 6.5 | – |" in lines
    assert "| `pos/macro_f1` | 0.25 | – | – |" in lines
    assert "| `pos/accuracy` | – | – | 0.2 |" in lines
    assert not [line for line in lines if "bad" in line]
    stages = {"original": {"mlm/loss": 2.0}, "cut": {"mlm/loss": 3.0, "pos/accuracy": 0.5}}
    pruned = {"held_out": stages}
    lines = card_run_text.results(pruned).splitlines()
    assert "| `mlm/loss` | 2 | 3 |" in lines
    assert "| `pos/accuracy` | – | 0.5 |" in lines
    assert card_run_text.final_metrics(pruned) == stages["cut"]
    assert card_run_text.final_metrics(RUN)["mlm/accuracy"] == 0.5
    assert card_run_text.results(None) == card_run_text.results({"valid": None}) == ""
    assert card_run_text.final_metrics({}) == {}


def test_held_out_text_is_called_by_its_corpus_or_its_task() -> None:
    assert card_run_text.dataset_of(RUN) == "wiki, news (held out)"
    named = {"config": {"corpus": ["a/b"], "corpus_valid": ["c/d"]}}
    assert card_run_text.dataset_of(named) == "d (held out)"
    assert card_run_text.dataset_of({"config": {"task": {"name": "ocnli"}}}) == "ocnli"
    assert card_run_text.dataset_of({}) == "text (held out)"


def test_versions_and_licences() -> None:
    text = card_run_text.versions(RUN)
    assert "| `commit` | `abc` |" in text
    assert "none" not in text
    assert card_run_text.versions(None) == ""
    licences = card_run_text.licences(RUN)
    assert "LTP, which is free for research and paid for commerce" in licences
    assert "jieba" not in licences
    assert "So have the models" not in licences
    several = {
        "config": {"teacher": ["a"]},
        "sources": {"corpora": [{"annotator": kind} for kind in ("jieba", "conllu", "jieba", 3)]},
    }
    licences = card_run_text.licences(several)
    assert licences.count("jieba (MIT licence)") == 1
    assert "So have the models" in licences
    assert "Apache 2.0" in card_run_text.licences(None)


def test_a_run_of_wrong_types() -> None:
    run = dict.fromkeys(RUN, 3)
    for section in ("data", "training", "results", "versions", "licences"):
        for tree in (run, {**RUN, "config": [1]}, {**RUN, "sources": {"corpora": [1, "x"]}}):
            assert isinstance(getattr(card_run_text, section)(tree), str)
    hostile = {**RUN, "valid": {"<script>|`": 1.0}, "versions": {"`|<b>": "\n# x"}}
    assert "`<script>\\|'`" in card_run_text.results(hostile)
    assert "\n# x" not in card_run_text.versions(hostile)
