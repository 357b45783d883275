import json
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lert_ds.data import shards
from lert_ds.data.shards import (
    ARRAYS,
    MANIFEST,
    Corpus,
    Manifest,
    read_manifest,
    write_manifest,
    write_shard,
)
from lert_ds.errors import CorpusError
from lert_ds.labels import LTP_TAGS, TASKS

LENGTH = 16


def make_arrays(instances: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = (instances, LENGTH)
    return {
        "input_ids": generator.integers(5, 60_000, shape, dtype=np.uint16),
        "word_starts": generator.random(shape) < 0.5,
        **{task: generator.integers(0, 256, shape, dtype=np.uint8) for task in TASKS},
    }


def make_corpus(folder: Path, sizes: tuple[int, ...], **facts: Any) -> list[dict[str, np.ndarray]]:
    parts = [make_arrays(size, seed) for seed, size in enumerate(sizes)]
    records = [write_shard(folder, f"{number:05d}-000", part) for number, part in enumerate(parts)]
    stated: dict[str, Any] = {
        "length": LENGTH,
        "vocabulary_size": 60_000,
        "tokenizer_sha256": "aa",
        "special_ids": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
        "tag_sets": {task: list(tags) for task, tags in LTP_TAGS.items()},
        "instances": sum(sizes),
        "shards": records,
        "counts": {},
        "statistics": {},
        "config": {},
        "versions": {},
    }
    write_manifest(folder, Manifest(**stated | facts))
    return parts


def test_what_was_written_is_read_back_in_order(tmp_path: Path) -> None:
    parts = make_corpus(tmp_path, (3, 0, 1, 4))
    corpus = Corpus([tmp_path])
    assert len(corpus) == 8
    assert corpus.length == LENGTH
    assert corpus.tag_sets["dep"][0] == "ATT"
    for index in range(8):
        instance = corpus[index]
        for name in ARRAYS:
            expected = np.concatenate([part[name] for part in parts])[index]
            given = instance.tags[name] if name in TASKS else getattr(instance, name)
            np.testing.assert_array_equal(given, expected)
            assert given.dtype == ARRAYS[name]
    corpus.verify()


@pytest.mark.parametrize("index", [-1, 8])
def test_an_index_outside_is_refused(tmp_path: Path, index: int) -> None:
    make_corpus(tmp_path, (8,))
    with pytest.raises(IndexError):
        Corpus([tmp_path])[index]


def test_rows_cannot_be_written_to(tmp_path: Path) -> None:
    make_corpus(tmp_path, (2,))
    with pytest.raises(ValueError, match="read-only"):
        Corpus([tmp_path])[0].input_ids[0] = 1


def test_several_folders_follow_each_other_and_a_pickle_maps_anew(tmp_path: Path) -> None:
    first = make_corpus(tmp_path / "a", (2,))[0]["input_ids"]
    make_corpus(tmp_path / "b", (3, 2))
    corpus = Corpus([tmp_path / "a", tmp_path / "b"])
    unread = pickle.dumps(corpus)
    assert len(corpus) == 7
    np.testing.assert_array_equal(corpus[1].input_ids, first[1])
    np.testing.assert_array_equal(corpus[2].input_ids, Corpus([tmp_path / "b"])[0].input_ids)
    assert pickle.dumps(corpus) == unread, "the arrays travel with the pickle"
    copy = pickle.loads(unread)
    np.testing.assert_array_equal(copy[6].tags["pos"], corpus[6].tags["pos"])


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path, (2,))
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(CorpusError, match=rf"{tmp_path}.*no {MANIFEST}.*lert-ds prepare"):
        Corpus([tmp_path])


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere.*lert-ds prepare"):
        Corpus([tmp_path / "nowhere"])


def test_no_folder_at_all_is_refused() -> None:
    with pytest.raises(CorpusError, match="corpus = "):
        Corpus([])


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"format": 99}', '{"format": 1}', "\ufeff\0"],
)
def test_a_manifest_that_is_none_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text, "utf-8")
    with pytest.raises(CorpusError, match=str(tmp_path / MANIFEST)):
        read_manifest(tmp_path)


def test_a_manifest_whose_shards_do_not_add_up_is_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path, (2,), instances=3)
    with pytest.raises(CorpusError, match=f"{MANIFEST}.*3 instances"):
        Corpus([tmp_path])


def test_a_shard_record_without_hashes_is_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path, (2,), shards=[{"name": "00000-000", "instances": 2, "files": {}}])
    with pytest.raises(CorpusError, match=f"{MANIFEST}.*lacks"):
        Corpus([tmp_path])


def test_a_shard_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path, (2,))
    tree = json.loads((tmp_path / MANIFEST).read_text())
    tree["shards"][0]["name"] = "../shards/00000-000"
    (tmp_path / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(CorpusError, match="leaves the folder"):
        Corpus([tmp_path])


@pytest.mark.parametrize("name", list(ARRAYS))
def test_a_missing_shard_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make_corpus(tmp_path, (2, 2))
    (tmp_path / "shards" / f"00001-000.{name}.npy").unlink()
    with pytest.raises(CorpusError, match=rf"00001-000\.{name}\.npy.*missing"):
        Corpus([tmp_path])


def test_a_truncated_shard_is_refused_by_name(tmp_path: Path) -> None:
    make_corpus(tmp_path, (2, 2))
    path = tmp_path / "shards" / "00001-000.input_ids.npy"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorpusError, match=r"00001-000\.input_ids\.npy.*cut short"):
        Corpus([tmp_path])


def test_an_altered_shard_is_refused_by_name(tmp_path: Path) -> None:
    make_corpus(tmp_path, (2, 2, 2))
    path = tmp_path / "shards" / "00001-000.ner.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    corpus = Corpus([tmp_path])
    with pytest.raises(CorpusError, match=r"00001-000\.ner\.npy.*changed or damaged"):
        corpus.verify()
    # Shared out over three processes, one of them finds it.
    corpus.verify(0, 3)
    corpus.verify(2, 3)
    with pytest.raises(CorpusError):
        corpus.verify(1, 3)


def test_a_damaged_header_is_the_corpus_s_fault_and_named(tmp_path: Path) -> None:
    make_corpus(tmp_path, (2,))
    path = tmp_path / "shards" / "00000-000.pos.npy"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(CorpusError, match=r"00000-000\.pos\.npy: cannot be read"):
        Corpus([tmp_path])[0]


def test_an_array_of_another_shape_is_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path, (2,), length=LENGTH * 2)
    with pytest.raises(CorpusError, match=r"input_ids\.npy: uint16 \[2, 16\].*\[2, 32\]"):
        Corpus([tmp_path])[0]


@pytest.mark.parametrize(
    ("fact", "value"),
    [("length", 32), ("tokenizer_sha256", "bb"), ("tag_sets", {"pos": [], "ner": [], "dep": []})],
)
def test_folders_that_differ_are_refused(tmp_path: Path, fact: str, value: Any) -> None:
    make_corpus(tmp_path / "a", (2,))
    make_corpus(tmp_path / "b", (2,), **{fact: value})
    with pytest.raises(CorpusError, match=rf"{tmp_path}/b: its {fact} differs.*{tmp_path}/a"):
        Corpus([tmp_path / "a", tmp_path / "b"])


def test_an_id_beyond_16_bits_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    arrays = make_arrays(2, 0)
    arrays["input_ids"] = np.full((2, LENGTH), 70_000)
    with pytest.raises(CorpusError, match="70000"):
        write_shard(tmp_path, "00000-000", arrays)
    assert not list(tmp_path.iterdir())


def test_the_same_arrays_are_the_same_bytes(tmp_path: Path) -> None:
    arrays = make_arrays(3, 7)
    assert write_shard(tmp_path / "a", "x", arrays) == write_shard(tmp_path / "b", "x", arrays)
    assert not [path for path in (tmp_path / "a" / "shards").iterdir() if path.suffix == ".part"]


def test_the_limit_of_open_files_grows_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    shards._allow_open_files(1000)
    assert limits[-1] == (1000 + shards.OTHER_FILES, 4096)
    shards._allow_open_files(1000)
    assert len(limits) == 2
    with pytest.raises(CorpusError, match=r"4000 files.*4096.*ulimit"):
        shards._allow_open_files(4000)
