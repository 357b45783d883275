"""What each stage hands on, one task at a time, without an executor."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lert_ds.corpus import steps
from lert_ds.corpus.assemble import read_annotated
from lert_ds.corpus.read import share_of
from lert_ds.corpus.work import Work
from lert_ds.errors import CorpusError

MakeWork = Callable[..., Work]


@dataclass
class Item:
    text: str
    metadata: dict[str, Any]


def documents(work: Work, task: int, tally: steps.Tally, sample: bool = False) -> Iterator[Item]:
    for document in steps.read(work, task, tally, sample):
        yield Item(document.text, {"number": document.number, "line": document.line})


def annotate_all(work: Work) -> list[list[str]]:
    found = []
    for task in range(work.plan.tasks):
        tally = steps.Tally()
        steps.annotate(work, task, documents(work, task, tally), tally)
        found.append([sentence.text.strip() for sentence in read_annotated(work.annotated(task))])
    return found


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


@pytest.mark.usefixtures("pairs")
def test_annotate_writes_sentences_and_what_it_counted(make_work: MakeWork, tmp_path: Path) -> None:
    work = make_work(input=write(tmp_path / "a.txt", "我爱北京。今天好。\n \n他来了\x07。\n"))
    assert annotate_all(work) == [["我爱北京。", "今天好。", "他来了。"]]
    (record,) = work.records("annotated")
    assert (record["documents"], record["sentences"]) == (2, 3)
    assert record["counts"] == {"control character stripped": 1}
    assert record["shares"] == sorted(record["shares"])


def test_an_annotator_that_serves_several_tasks_counts_for_each(
    make_work: MakeWork, tmp_path: Path
) -> None:
    row = "\t".join("_" * 8)
    block = f"1-2\tdu\t{row}\n1\tde\t{row}\n2\tle\t{row}\n\n"  # one count a block
    for name, blocks in (("a", 1), ("b", 3)):
        write(tmp_path / f"{name}.conllu", block * blocks)
    work = make_work(input=str(tmp_path / "*.conllu"), annotator={"kind": "conllu"})
    annotate_all(work)
    counts = [sum(record["counts"].values()) for record in work.records("annotated")]
    assert counts == [1, 3]


@pytest.mark.usefixtures("pairs")
def test_repeated_sentences_go_across_tasks(make_work: MakeWork, tmp_path: Path) -> None:
    text = "我爱北京。今天好。\n\n" + "\n\n".join(f"{i}在北京。我爱 北京。" for i in range(6))
    path = write(tmp_path / "a.txt", text)
    work = make_work(
        input=path, deduplicate="exact", split_megabytes=0.00008, document_characters=100
    )
    assert work.plan.tasks > 2
    for task in reversed(range(work.plan.tasks)):
        tally = steps.Tally()
        steps.sign_sentences(work, task, documents(work, task, tally))
    for bucket in range(work.plan.buckets):
        steps.compare_bucket(work, bucket)
    found = [sentence for task in annotate_all(work) for sentence in task]
    assert found == ["我爱北京。", "今天好。", *(f"{i}在北京。" for i in range(6))]
    dropped = sum(
        r["counts"].get("sentence dropped: seen before", 0) for r in work.records("annotated")
    )
    assert dropped == 6


def divide(work: Work, shares: list[list[float]]) -> float:
    for task, found in enumerate(shares):
        record = {"sentences": len(found), "documents": len(found)}
        work.record(
            "annotated", task, {**record, "shares": [min(found), max(found)] if found else []}
        )
    steps.divide(work)
    threshold: float = work.read("divide.json")["threshold"]
    return threshold


def make_divided(make_work: MakeWork, tmp_path: Path, held_out: float) -> Work:
    for name in "ab":
        write(tmp_path / f"{name}.txt", "我爱北京。")
    return make_work(input=str(tmp_path / "*.txt"), held_out=held_out)


@pytest.mark.parametrize(
    ("shares", "held"),
    [
        ([[0.05, 0.5], [0.09, 0.8]], [0.05, 0.09]),  # as the share says
        ([[0.3, 0.5], [0.2, 0.8]], [0.2]),  # nothing below it: the nearest
        ([[0.01, 0.05], [0.02, 0.04]], [0.01, 0.02, 0.04]),  # everything: all but the farthest
        ([[0.3, 0.5], []], [0.3]),
    ],
)
def test_both_sides_get_a_document(
    make_work: MakeWork, tmp_path: Path, shares: list[list[float]], held: list[float]
) -> None:
    work = make_divided(make_work, tmp_path, 0.1)
    threshold = divide(work, shares)
    assert sorted(s for task in shares for s in task if s < threshold) == held


def test_one_document_cannot_be_divided(make_work: MakeWork, tmp_path: Path) -> None:
    work = make_divided(make_work, tmp_path, 0.1)
    with pytest.raises(CorpusError, match=r"held_out = 0.1: .*one document; .*held_out=0"):
        divide(work, [[0.5], []])
    with pytest.raises(CorpusError, match=r"copies of one document only"):
        divide(work, [[0.5], [0.5]])


def test_no_text_at_all(make_work: MakeWork, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"\*.txt: it holds only blanks; give text"):
        divide(make_divided(make_work, tmp_path, 0.0), [[], []])


def test_the_sample_of_the_vocabulary_is_even_and_not_the_held_out(
    make_work: MakeWork, tmp_path: Path
) -> None:
    text = "\n\n".join(f"第{i}篇" + "字" * 20 for i in range(1000))
    work = make_work(input=write(tmp_path / "a.txt", text), vocabulary_characters=6_000)
    tally = steps.Tally()
    sample = list(documents(work, 0, tally, sample=True))
    assert 180 < len(sample) < 320  # a quarter of them
    shares = [share_of(item.metadata["number"]) for item in sample]
    assert 0.4 < sum(shares) / len(shares) < 0.6


def test_a_malformed_line_is_named_in_its_file(make_work: MakeWork, tmp_path: Path) -> None:
    row = "\t".join("_" * 8)
    text = f"1\t我\t{row}\n\n# text = 爱\n1\t爱\t{row}\n3\t好\t{row}\n\n" * 40
    path = write(tmp_path / "a.conllu", text)
    annotator = {"kind": "conllu", "tag_sets": "collect"}
    work = make_work(
        input=path, annotator=annotator, split_megabytes=0.0005, document_characters=100
    )
    assert work.plan.tasks > 1
    work.write("tag_sets.json", {"pos": [], "ner": [], "dep": []})
    last = work.plan.tasks - 1
    data = list(documents(work, last, steps.Tally()))
    before = text.encode()[: work.plan.splits[last].start].count(b"\n")
    bad = next(
        n for n, line in enumerate(text.split("\n"), 1) if n > before and line.startswith("3")
    )
    with pytest.raises(CorpusError, match=rf"a.conllu:{bad}: ID 3 where 2 is next"):
        steps.annotate(work, last, iter(data), steps.Tally())
    with pytest.raises(CorpusError, match=rf"a.conllu:{bad}: ID 3 where 2 is next"):
        steps.count_tags(work, last, iter(data))


def test_collected_tags_are_ranked_over_all_tasks(make_work: MakeWork, tmp_path: Path) -> None:
    for name, tags in (("a", "xy"), ("b", "yz"), ("c", "zy")):
        lines = [json.dumps({"words": [tag], "pos": [tag.upper()]}) for tag in tags]
        write(tmp_path / f"{name}.jsonl", "\n".join(lines))
    annotator = {"kind": "precomputed", "tag_sets": "collect"}
    work = make_work(input=str(tmp_path / "*.jsonl"), annotator=annotator)
    for task in range(3):
        steps.count_tags(work, task, documents(work, task, steps.Tally()))
    steps.rank(work)
    assert work.tag_sets == {"pos": ["Y", "Z", "X"], "ner": [], "dep": []}
