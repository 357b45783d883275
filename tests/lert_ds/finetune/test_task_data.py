import gzip
import itertools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lert_ds import model_dir, tokenizer_files
from lert_ds.errors import ConfigError, ModelError, UserError
from lert_ds.finetune.readers import read_entities
from lert_ds.finetune.settings import TaskConfig
from lert_ds.finetune.task_data import (
    TaskData,
    find_files,
    folder_of,
    open_task,
    read_examples,
)
from lert_ds.finetune.tasks import TASKS
from lert_ds.train.trainer import TrainConfig

Open = Callable[..., TaskData]


@pytest.fixture
def opened(tiny_model: Path) -> Open:
    """Open a task for the tiny model: folder, name, settings."""

    def make(data: Path, name: str, **settings: Any) -> TaskData:
        config = model_dir.read_config(tiny_model)
        return open_task(TaskConfig(name=name, data=data, **settings), tiny_model, config)

    return make


@pytest.mark.parametrize("name", TASKS)
def test_every_task_opens_from_the_files_of_its_owners(
    opened: Open, task_files: Path, name: str
) -> None:
    data = opened(task_files, name)
    task = TASKS[name]
    assert data.task is task
    held_out = "dev" not in data.files
    assert len(data.train.examples) == (14 if held_out else 15)
    assert len(data.dev.examples) == (1 if held_out else 15)
    assert (data.test is not None) == ("test" in data.files)
    if task.kind == "classification":
        # The files have the classes one after the other.
        assert [e.label for e in data.train.examples] == [n % len(task.labels) for n in range(15)]
        assert data.baselines() == {
            "accuracy": {"commonest class": -(-15 // len(task.labels)) / 15}
        }
    else:
        assert data.baselines() == {}
    if task.kind == "spans":
        for part in (data.train, data.dev):
            answers = [example.answers[0] for example in part.examples]
            assert all(answer.start is not None for answer in answers)
    facts = data.facts
    assert facts.length == max(len(f.input_ids) for f in data.train.features) <= 64
    assert (facts.instances, facts.held_out) == (len(data.train.features), len(data.dev.features))
    assert facts.pad_id == data.pad_id == 0
    data.verify(0, 1)


def test_where_there_is_no_dev_file_every_tenth_example_is_held_out(
    opened: Open, write_task: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = write_task(tmp_path, "msra", 57)
    examples = read_entities(place / "train.txt", TASKS["msra"].labels)
    data = opened(tmp_path, "msra")
    assert list(data.dev.examples) == examples[9::10]
    assert [e for e in examples if e not in data.dev.examples] == list(data.train.examples)
    assert f"{place / 'train.txt'}: there is no dev file, so every 10." in caplog.text
    assert caplog.records[-1].levelno >= logging.INFO
    quarter = opened(tmp_path, "msra", held_out=0.25)
    assert list(quarter.dev.examples) == examples[3::4]
    half = opened(tmp_path, "msra", held_out=0.9)
    assert list(half.dev.examples) == examples[1::2]
    with pytest.raises(
        ConfigError, match=r"task.held_out = 0, and there is no dev file.*task.dev="
    ):
        opened(tmp_path, "msra", held_out=0.0)


def test_names_of_files_by_precedence_and_packed_ones(write_task: Any, tmp_path: Path) -> None:
    place = write_task(tmp_path, "ocnli")
    task = TASKS["ocnli"]
    settings = TaskConfig(name="ocnli", data=tmp_path)
    for name in ("train.json", "train.3k.json"):
        shutil.copyfile(place / "train.50k.json", place / name)
    assert find_files(settings, task)["train"].name == "train.50k.json"
    content = (place / "train.50k.json").read_bytes()
    (place / "train.50k.json.gz").write_bytes(gzip.compress(content))
    assert find_files(settings, task)["train"].name == "train.50k.json"
    (place / "train.50k.json").unlink()
    assert find_files(settings, task)["train"].name == "train.50k.json.gz"
    (place / "train.50k.json.gz").unlink()
    assert find_files(settings, task)["train"].name == "train.json"


def test_a_packed_file_has_the_same_examples(opened: Open, write_task: Any, tmp_path: Path) -> None:
    place = write_task(tmp_path, "bq")
    plain = opened(tmp_path, "bq")
    for path in list(place.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = opened(tmp_path, "bq")
    assert packed.files == {split: f"{name}.gz" for split, name in plain.files.items()}
    assert packed.train.examples == plain.train.examples


def test_the_folder_may_be_the_tasks_own_or_named_otherwise(
    write_task: Any, tmp_path: Path
) -> None:
    place = write_task(tmp_path, "chnsenticorp")
    task = TASKS["chnsenticorp"]
    for folder in (tmp_path, place):
        assert folder_of(TaskConfig(name="chnsenticorp", data=folder), task) == place
    place.rename(tmp_path / "csc")
    assert folder_of(TaskConfig(name="csc", data=tmp_path), task) == tmp_path / "csc"


def test_files_that_are_named(
    opened: Open, write_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_task(tmp_path, "lcqmc")
    for name in ("mine.tsv", "mine-dev.tsv"):
        shutil.copyfile(place / "train.txt", place / name)
    elsewhere = tmp_path / "elsewhere.txt"
    shutil.copyfile(place / "dev.txt", elsewhere)
    data = opened(tmp_path, "lcqmc", train="mine.tsv", dev=place / "mine-dev.tsv", test=elsewhere)
    assert data.files == {"train": "mine.tsv", "dev": "mine-dev.tsv", "test": "elsewhere.txt"}
    assert data.test is not None
    assert data.dev.examples == data.train.examples != data.test.examples
    # A path that is none of the folder's is one from where the command stands.
    monkeypatch.chdir(tmp_path)
    assert opened(tmp_path, "lcqmc", test="elsewhere.txt").files["test"] == "elsewhere.txt"
    with pytest.raises(UserError, match=r"task.dev = none.txt: no such file, in .*lcqmc neither"):
        opened(tmp_path, "lcqmc", dev="none.txt")


def test_what_is_missing_is_told(opened: Open, write_task: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"task.data = .*nowhere: there is no such folder; name the"
    ):
        opened(tmp_path / "nowhere", "ocnli")
    (tmp_path / "ocnli").mkdir()
    message = r"ocnli: there is no train.50k.json or train.json or train.3k.json of OCNLI in it"
    with pytest.raises(UserError, match=message):
        opened(tmp_path, "ocnli")
    with pytest.raises(ConfigError, match=r"ocnil: no such task .did you mean ocnli"):
        opened(tmp_path, "ocnil")
    place = write_task(tmp_path, "bq")
    (place / "dev.csv").write_text("sentence1,sentence2,label\n", "utf-8")
    with pytest.raises(UserError, match=r"dev.csv: there is no example for dev in it"):
        opened(tmp_path, "bq")


def test_an_answer_to_train_on_has_to_stand_in_its_context(
    opened: Open, write_task: Any, tmp_path: Path
) -> None:
    place = write_task(tmp_path, "drcd")
    dev, train = place / "DRCD_dev.json", place / "DRCD_training.json"
    dev.write_text(dev.read_text("utf-8").replace('"context": "', '"context": "x', 1), "utf-8")
    opened(tmp_path, "drcd")  # a start that is wrong is mended
    for path in (dev, train):
        tree = path.read_text("utf-8")
        path.write_text(tree.replace('"text": "', '"text": "没', 3), "utf-8")
        if path == dev:
            opened(tmp_path, "drcd")  # to judge by, it may be an answer in other words
    with pytest.raises(UserError, match=r"DRCD_training.json: the question Q_0 has the answer '没"):
        opened(tmp_path, "drcd")


def test_rows_are_no_longer_than_asked_or_than_the_model_has_positions(
    opened: Open, task_files: Path, tiny_model: Path
) -> None:
    assert opened(task_files, "cmrc2018", max_length=512).max_length == 64
    short = opened(task_files, "cmrc2018", max_length=16)
    assert short.max_length == 16
    assert max(len(feature.input_ids) for feature in short.train.features) <= 16
    config = model_dir.read_config(tiny_model)
    config.max_position_embeddings = 20
    settings = TaskConfig(name="cmrc2018", data=task_files)
    assert open_task(settings, tiny_model, config).max_length == 20
    config.vocab_size = 100
    with pytest.raises(ModelError, match=r"its tokenizer has 141 pieces, its model embeds 100"):
        open_task(settings, tiny_model, config)


def test_the_fingerprint_follows_what_is_trained_on(
    opened: Open, write_task: Any, tmp_path: Path, tiny_model: Path
) -> None:
    place = write_task(tmp_path, "chnsenticorp")

    def print_of(**settings: Any) -> str:
        return opened(tmp_path, "chnsenticorp", **settings).fingerprint

    first = print_of()
    # The same once more, from elsewhere, under an alias, with a limit beyond the model's own.
    assert print_of() == print_of(max_length=100) == print_of(train=place / "train.tsv") == first
    shutil.copytree(place, tmp_path / "copy/chnsenticorp")
    assert opened(tmp_path / "copy", "chnsenticorp").fingerprint == first
    different = [
        first, print_of(max_length=32), print_of(held_out=0.2), print_of(stride=9),
        print_of(question_length=9), print_of(answer_length=9), print_of(train="dev.tsv"),
    ]  # fmt: skip
    content = (place / "train.tsv").read_text("utf-8")
    (place / "train.tsv").write_text(content.replace("\n1\t", "\n0\t", 1), "utf-8")
    different.append(print_of())
    other = tmp_path / "vocabulary"
    other.mkdir()
    pieces = tokenizer_files.pieces(tokenizer_files.load(tiny_model))
    pieces[-2:] = pieces[:-3:-1]  # two change places
    (other / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    settings = TaskConfig(name="chnsenticorp", data=tmp_path)
    different.append(open_task(settings, other, model_dir.read_config(tiny_model)).fingerprint)
    assert len(set(different)) == len(different)


def test_a_trainer_gets_its_batches_and_its_judge(opened: Open, task_files: Path) -> None:
    data = opened(task_files, "ocnli")
    config = TrainConfig(steps=4, batch_size=6, micro_batch_size=3, learning_rate=1e-3)
    source = data.batches(config, 5, 3)
    stream = list(itertools.islice(source.training(0, 0), 8))
    assert [number for number, _ in stream] == list(range(8))
    assert all(len(batch.input_ids) == 3 for _, batch in stream)
    again = next(source.training(2, 12))
    assert again[0] == 4
    assert again[1].features.tolist() == stream[4][1].features.tolist()  # type: ignore[attr-defined]
    assert source.evaluation is not None
    assert source.judge is not None
    seen = [n for batch in source.evaluation(0) for n in batch.features.tolist()]  # type: ignore[attr-defined]
    assert sorted(seen) == list(range(15))
    other = data.batches(config, 6, 3)
    orders = [
        [batch.features.tolist() for _, batch in itertools.islice(s.training(0, 0), 8)]  # type: ignore[attr-defined]
        for s in (source, other)
    ]
    assert orders[0] != orders[1]


def test_processes_share_the_batches(
    opened: Open, task_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(task_files, "ocnli")
    config = TrainConfig(steps=4, batch_size=6, micro_batch_size=3, learning_rate=1e-3)
    alone = [n for n, _ in itertools.islice(data.batches(config, 5, 3).training(0, 0), 8)]
    shared = []
    for rank in (0, 1):
        monkeypatch.setattr("lert_ds.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("lert_ds.distributed.world_size", lambda: 2)
        stream = data.batches(config, 5, 3)
        shared += [n for n, _ in itertools.islice(stream.training(0, 0), 4)]
        assert stream.evaluation is not None
        shares = list(stream.evaluation(0))
        assert len(shares) == 1
    assert sorted(shared) == alone


@pytest.mark.parametrize("name", ["ocnli", "msra"])
def test_to_evaluate_nothing_to_train_on_is_needed(
    opened: Open, write_task: Any, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    place = write_task(tmp_path, name, 30)
    whole = opened(tmp_path, name)
    config = model_dir.read_config(tiny_model)
    if "dev" in whole.files:  # else its dev part is held out of what is trained on
        (place / whole.files["train"]).unlink()
    settings = TaskConfig(name=name, data=tmp_path)
    data = open_task(settings, tiny_model, config, to_train=False)
    assert len(data.train.examples) == len(data.train.features) == 0
    assert data.dev.examples == whole.dev.examples
    assert [f.input_ids.tolist() for f in data.dev.features] == [
        f.input_ids.tolist() for f in whole.dev.features
    ]
    for path in place.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=f"there is no {TASKS[name].files['train'][0]}"):
        open_task(settings, tiny_model, config, to_train=False)


def test_examples_are_read_without_a_tokenizer(opened: Open, task_files: Path) -> None:
    for name in ("bq", "msra", "drcd"):
        settings, task = TaskConfig(name=name, data=task_files), TASKS[name]
        examples = read_examples(task, settings, find_files(settings, task))
        data = opened(task_files, name)
        for split in ("train", "dev", "test"):
            assert examples[split] == getattr(data, split).examples
