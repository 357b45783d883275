"""`lert-ds prepare` as a user runs it: the same bytes always, and mistakes in one sentence."""

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lert_ds.cli import main
from lert_ds.corpus import annotate, steps
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.text import split_sentences
from lert_ds.data.shards import HELD_OUT, Corpus, read_manifest
from lert_ds.errors import CorpusError
from lert_ds.labels import LTP_TAGS, TASKS

SHARED = Path(__file__).parents[2] / "../shared/data"
TIMED = {"statistics.md", "statistics.json", "summary.json"}
"""Files that tell how long it took."""
HAN = "我爱北京天安门今气很好他来了人在山水春夏秋冬一二三"


class Pairs:
    """Annotates every two characters as a word, tagged n."""

    def __init__(self) -> None:
        self.tag_sets = LTP_TAGS
        self.counts: Any = __import__("collections").Counter()

    def sentences(self, text: str) -> list[str]:
        return split_sentences(text, 510)

    def annotate(self, sentences: Iterable[tuple[int, str]]) -> Iterator[AnnotatedSentence]:
        for number, text in sentences:
            joined = "".join(text.split())
            words = [joined[place : place + 2] for place in range(0, len(joined), 2)]
            yield AnnotatedSentence(joined, words, ["n"] * len(words), None, None, number)


@pytest.fixture(autouse=True)
def _pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fast annotator stand in for jieba, whose dictionary takes a second to load."""
    table = {**annotate.ANNOTATORS, "jieba": lambda config, tag_sets: Pairs()}
    monkeypatch.setattr(annotate, "ANNOTATORS", table)


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path.write_text(
        "\n".join([*special, *HAN, *"。，0123456789", *(f"##{d}" for d in "0123456789")]) + "\n",
        "utf-8",
    )
    return path


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """Return a text of 60 different documents."""
    path = tmp_path / "prose.txt"
    documents = []
    for number in range(60):
        turned = HAN[number % 20 :] + HAN[: number % 20]
        documents.append(f"{turned}。\n{turned[::-1]}，{number}。{turned[:5]}。")
    path.write_text("\n\n".join(documents) + "\n", "utf-8")
    return path


@pytest.fixture
def prepare(tmp_path: Path, vocabulary: Path) -> Callable[..., None]:
    """Return what runs the command on a configuration file of nothing but overrides."""
    preset = tmp_path / "run.toml"
    preset.write_text("")

    def run(*overrides: str) -> None:
        keys = [
            f"tokenizer={vocabulary}",
            f"output={tmp_path / 'corpus'}",
            "max_length=16",
            "executor.workers=1",
            *overrides,
        ]
        main(["prepare", str(preset), *keys])

    return run


Prepare = Callable[..., None]


def digest(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a corpus that must be the same bytes always."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in TIMED
    }


def texts(folder: Path) -> list[str]:
    """Return the documents of a corpus as their pieces joined, from all its instances."""
    pieces = (folder / "vocab.txt").read_text("utf-8").split("\n")
    corpus = Corpus([folder])
    rows = [corpus[number].input_ids.tolist() for number in range(len(corpus))]
    return [
        "".join(pieces[token].removeprefix("##") for token in row if token > 3 or token == 1)
        for row in rows
    ]


def refused(capsys: pytest.CaptureFixture[str], run: Callable[[], None]) -> str:
    """Return the one line that a user's mistake gets."""
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


# ------------------------------------------------------------------------------ the same bytes


SMALL_SPLITS = ("split_megabytes=0.0012", "document_characters=100")


def annotated_file(path: Path) -> Path:
    lines = []
    for number in range(80):
        words = [HAN[(number + k) % 20 : (number + k) % 20 + 2] for k in range(number % 9 + 1)]
        tags = {"pos": ["n", "v", None][number % 3 : number % 3 + 1] * len(words)}
        lines.append(
            json.dumps({"words": words, **tags, "ner": None, "dep": None, "doc": number // 3})
        )
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_one_worker_and_two_make_the_same_bytes(tmp_path: Path, prepare: Prepare) -> None:
    source = annotated_file(tmp_path / "a.jsonl")
    keys = [f"input={source}", "annotator.kind=precomputed", "held_out=0.2", "deduplicate=exact"]
    keys += ["annotator.tag_sets=collect", "tokenizer=train", "vocabulary_size=120", *SMALL_SPLITS]
    prepare(*keys, f"output={tmp_path / 'one'}")
    prepare(*keys, f"output={tmp_path / 'two'}", "executor.workers=2")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert len(read_manifest(tmp_path / "one").shards) > 2
    assert read_manifest(tmp_path / "one").tag_sets["pos"] == ["v", "n"]


def test_an_interrupted_run_repeats_only_what_is_missing(
    prose: Path, tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"input={prose}", "held_out=0.2", "deduplicate=exact", *SMALL_SPLITS]
    prepare(*keys, f"output={tmp_path / 'whole'}")
    calls: list[int] = []

    class Failing(Pairs):
        def annotate(self, sentences: Iterable[tuple[int, str]]) -> Iterator[AnnotatedSentence]:
            calls.append(1)
            for sentence in super().annotate(sentences):
                if len(calls) == 3:
                    raise MemoryError
                yield sentence

    monkeypatch.setitem(annotate.ANNOTATORS, "jieba", lambda config, tag_sets: Failing())  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as stopped:
        prepare(*keys)
    assert stopped.value.code == 1  # ours: with a traceback
    work = tmp_path / "corpus.work"
    assert len(list((work / "annotated").glob("*.zst"))) == 2
    assert not list((work / "annotated").glob(".*"))  # nothing half-written
    assert not (tmp_path / "corpus").exists()
    calls[:] = [0] * 10
    prepare(*keys)
    tasks = len(read_manifest(tmp_path / "corpus").shards)
    assert len(calls) - 10 == tasks - 2
    assert digest(tmp_path / "corpus") == digest(tmp_path / "whole")
    assert not work.exists()


@pytest.mark.parametrize("function", ["annotate", "divide", "sign_sentences", "compare_bucket"])
def test_a_run_stopped_in_any_stage_goes_on(
    prose: Path, tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    keys = [f"input={prose}", "deduplicate=exact", "split_megabytes=0.004"]
    original = getattr(steps, function)

    def stop(work: Any, *arguments: Any) -> None:
        original(work, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps, function, stop)
        with pytest.raises(SystemExit) as stopped:
            prepare(*keys)
        assert stopped.value.code == 130
    prepare(*keys)
    prepare(*keys, f"output={tmp_path / 'whole'}")
    assert digest(tmp_path / "corpus") == digest(tmp_path / "whole")


def test_formats_of_the_same_text_make_the_same_instances(
    prose: Path, tmp_path: Path, prepare: Prepare
) -> None:
    documents = prose.read_text("utf-8").strip().split("\n\n")
    sources = {
        "a.txt": prose.read_bytes(),
        "b.txt.gz": gzip.compress(
            ("\ufeff" + prose.read_text("utf-8")).replace("\n", "\r\n").encode()
        ),
        "c.jsonl": "\n".join(json.dumps({"body": text}) for text in documents).encode(),
    }
    for name, content in sources.items():
        (tmp_path / name).write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.table({"body": documents}), tmp_path / "d.parquet")
    made = []
    for name in (*sources, "d.parquet"):
        prepare(f"input={tmp_path / name}", f"output={tmp_path / name}.corpus", "text_key=body")
        made.append(texts(tmp_path / f"{name}.corpus"))
    assert made[0] == made[1] == made[2] == made[3]
    assert "".join(made[0]) == prose.read_text("utf-8").replace("\n", "")


# ----------------------------------------------------------------------- what is in the corpus


def test_held_out_documents_are_apart_and_complete(
    prose: Path, tmp_path: Path, prepare: Prepare
) -> None:
    prepare(f"input={prose}", f"output={tmp_path / 'all'}", "max_length=64")
    prepare(f"input={prose}", "held_out=0.25", "max_length=64")
    output = tmp_path / "corpus"
    train, held_out = "".join(texts(output)), "".join(texts(output / HELD_OUT))
    documents = [t.replace("\n", "") for t in prose.read_text("utf-8").strip().split("\n\n")]
    inside = [(document in train, document in held_out) for document in documents]
    assert all(a != b for a, b in inside)
    assert 4 <= sum(b for _, b in inside) <= 26
    assert len(train) + len(held_out) == len("".join(texts(tmp_path / "all")))
    # The order of the input changes no document's side.
    shuffled = tmp_path / "shuffled.txt"
    shuffled.write_text("\n\n".join(reversed(prose.read_text("utf-8").strip().split("\n\n"))))
    prepare(f"input={shuffled}", f"output={tmp_path / 'other'}", "held_out=0.25", "max_length=64")
    other = "".join(texts(tmp_path / "other" / HELD_OUT))
    assert [document in other for document in documents] == [b for _, b in inside]


def test_two_documents_are_enough_to_hold_one_out(tmp_path: Path, prepare: Prepare) -> None:
    source = tmp_path / "a.txt"
    source.write_text("我爱北京。\n\n今天天气很好。\n", "utf-8")
    for share in (0.001, 0.999):
        prepare(f"input={source}", f"held_out={share}", "overwrite=true")
        found = [texts(tmp_path / "corpus"), texts(tmp_path / "corpus" / HELD_OUT)]
        assert sorted(text for side in found for text in side) == ["今天天气很好。", "我爱北京。"]


def test_kept_annotations_pack_again_at_another_length(
    prose: Path, tmp_path: Path, prepare: Prepare
) -> None:
    keys = ["held_out=0.2", "max_length=64"]
    prepare(f"input={prose}", *keys, f"output={tmp_path / 'once'}")
    prepare(f"input={prose}", "held_out=0.2", "keep_annotations=true")
    annotations = tmp_path / "corpus" / "annotated"
    again = ["annotator.kind=precomputed", f"output={tmp_path / 'again'}"]
    prepare(f"input={annotations}", *keys, *again)
    for side in (".", HELD_OUT):  # the same documents are held out
        assert texts(tmp_path / "again" / side) == texts(tmp_path / "once" / side)


def test_sentences_seen_before_are_dropped(tmp_path: Path, prepare: Prepare) -> None:
    source = tmp_path / "a.txt"
    source.write_text("我爱北京。今天很好。\n\n今天很好。他来了。我爱 北京。\n", "utf-8")
    prepare(f"input={source}", "deduplicate=exact", "max_length=32")
    assert texts(tmp_path / "corpus") == ["我爱北京。今天很好。他来了。"]
    counts = read_manifest(tmp_path / "corpus").counts
    assert counts["sentence dropped: seen before"] == 2


def test_a_treebank_with_its_own_tags(tmp_path: Path, prepare: Prepare) -> None:
    source = SHARED / "treebank/zh_gsdsimp-ud-dev.conllu"
    if not source.is_file():
        pytest.skip("no shared data beside the checkout")
    keys = ["annotator.kind=conllu", "annotator.tag_sets=collect", "annotator.pos_column=upos"]
    prepare(f"input={source}", *keys, "tokenizer=train", "max_length=128", "split_megabytes=0.5")
    manifest = read_manifest(tmp_path / "corpus")
    assert manifest.tag_sets["pos"][:2] == ["NOUN", "VERB"]
    assert {"nsubj", "root", "obj", "acl:relcl"} <= set(manifest.tag_sets["dep"])
    assert manifest.tag_sets["ner"] == []
    assert manifest.statistics["documents"] == 500
    dep = manifest.statistics["tags"]["dep"]
    assert dep["nmod"] > dep["nsubj"] > 500
    assert dep.get("(no tag)", 0) == 0
    assert manifest.statistics["padding_share"] < 0.03


def test_the_shipped_sample_by_hand(tmp_path: Path, prepare: Prepare) -> None:
    prepare("input=samples:annotated.conllu", "annotator.kind=conllu", "held_out=0.2")
    manifest = read_manifest(tmp_path / "corpus")
    assert manifest.tag_sets == {task: list(LTP_TAGS[task]) for task in TASKS}
    assert all(manifest.statistics["majority_tag_share"][task] > 0 for task in TASKS)


def test_real_text_is_hardly_padded(tmp_path: Path, prepare: Prepare) -> None:
    source = SHARED / "text/wiki_train.txt"
    if not source.is_file():
        pytest.skip("no shared data beside the checkout")
    prepare(f"input={source}", f"tokenizer={SHARED / 'vocab.txt'}", "max_length=512")
    manifest = read_manifest(tmp_path / "corpus")
    assert manifest.statistics["padding_share"] < 0.01
    assert manifest.statistics["unknown_share"] < 0.01
    assert 5 < manifest.statistics["unigram_entropy_nats"] < 8


def test_what_the_folder_says_of_itself(prose: Path, tmp_path: Path, prepare: Prepare) -> None:
    prepare(f"input={prose}")
    output = tmp_path / "corpus"
    summary = json.loads((output / "summary.json").read_text())
    assert summary["command"] == "prepare"
    assert summary["instances"] == len(Corpus([output]))
    statistics = json.loads((output / "statistics.json").read_text())
    assert statistics["documents"] == 60
    assert statistics["speed"]["annotate"]["characters_per_second"] > 0
    assert "unigram entropy" in (output / "statistics.md").read_text()


def test_dry_run_tells_the_plan_and_writes_nothing(
    prose: Path, tmp_path: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    prepare(f"input={prose}", "--dry-run", *SMALL_SPLITS)
    shown = capsys.readouterr().out
    assert '"max_length": 16' in shown
    assert "task 00001" in shown
    assert "million characters" in shown
    assert sorted(tmp_path.iterdir()) == before


# ------------------------------------------------------------------------------------ mistakes


BAD_INPUT = {
    "missing file": (None, "a.txt: there is no such file or folder"),
    "empty file": (b"", "a.txt: it is empty"),
    "only blanks": ("\n \n　\n\t\n".encode(), "a.txt: it holds only blanks"),
    "not UTF-8": ("好\n你好\n".encode("gbk"), "a.txt:1: byte 0xba at 1 of the line is not UTF-8"),
    "binary": (b"\x7fELF\x00\x01\n", "a.txt:1: a NUL byte, so it is binary"),
    "broken gzip": (gzip.compress(b"\xe6\x88\x91\n" * 999)[:-9], "a.txt.gz: broken gzip"),
    "no gzip": (b"plain", "a.txt.gz: broken gzip"),
    "no text key": (b'{"title": "x"}\n', "a.jsonl:1: no text under the key 'text'"),
    "no JSON": (b'{"text": "x"}\ntext\n', "a.jsonl:2: not valid JSON"),
    "no table": (b"PAR1", "a.parquet: not a readable Parquet file"),
    "another format": (b"x", "a.pdf: files are told by their ending"),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input(
    tmp_path: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    content, message = BAD_INPUT[what]
    source = tmp_path / message.split(":")[0]
    if content is not None:
        source.write_bytes(content)
    assert message in refused(capsys, lambda: prepare(f"input={source}"))
    assert not (tmp_path / "corpus").exists()


def test_bad_input_in_a_worker_process(
    prose: Path, tmp_path: Path, prepare: Prepare, capfd: pytest.CaptureFixture[str]
) -> None:
    source = annotated_file(tmp_path / "a.jsonl")
    with source.open("a") as file:
        file.write('{"words": 3}\n')
    keys = [f"input={source}", "annotator.kind=precomputed", "executor.workers=2", *SMALL_SPLITS]
    with pytest.raises(SystemExit) as stopped:
        prepare(*keys)
    assert stopped.value.code == 2
    shown = capfd.readouterr().err
    assert "a.jsonl:81: " in shown
    assert "Traceback" not in shown
    # Mended, the run begins anew or goes on, as the user says.
    annotated_file(source)
    prepare(*keys, "overwrite=true")
    assert len(Corpus([tmp_path / "corpus"])) > 0


def test_bad_input_can_be_dropped(tmp_path: Path, prepare: Prepare) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes("我爱北京。\n".encode() + b"\xff\xfe\n" + "今天很好。\n".encode() + b"a\0\n")
    prepare(f"input={source}", 'on_bad_text="drop"')
    counts = read_manifest(tmp_path / "corpus").counts
    assert counts["line dropped: not UTF-8"] == counts["line dropped: binary"] == 1
    assert texts(tmp_path / "corpus") == ["我爱北京。今天很好。"]


def test_odd_but_good_input(tmp_path: Path, prepare: Prepare) -> None:
    source = tmp_path / "a.txt"
    source.write_text(
        "我爱\x07北京\x00"[:-1] + "。" + "今天很好。" * 320_000, "utf-8"
    )  # 5 MB a line
    prepare(f"input={source}", "max_length=512")
    manifest = read_manifest(tmp_path / "corpus")
    assert manifest.statistics["tokens"] == 5 * 320_001
    assert manifest.counts["control character stripped"] == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("input=hollow", "input = hollow: the folder holds no file that ends in .txt"),
        ("annotator.kind=nobody", "annotator.kind = 'nobody': input should be 'jieba', 'ltp'"),
        ("max_lenght=9", "unknown key max_lenght (did you mean max_length?)"),
        ("max_length=long", "max_length = 'long'"),
        ("tokenizer=nowhere/vocab.txt", "tokenizer = nowhere/vocab.txt: there is no such file"),
        ('filters=[{name="Gopher"}]', "there is no filter 'Gopher'; there are C4Bad"),
        ("held_out=0.5", "held_out = 0.5: there is nothing to part"),
    ],
)
def test_mistakes_in_the_configuration(
    tmp_path: Path,
    prepare: Prepare,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hollow").mkdir()
    (tmp_path / "a.txt").write_text("我爱北京。", "utf-8")
    assert message in refused(capsys, lambda: prepare("input=a.txt", override))
    assert not (tmp_path / "corpus").exists()


def test_a_finished_corpus_stays_until_the_new_one_is_complete(
    prose: Path, tmp_path: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(f"input={prose}")
    output = tmp_path / "corpus"
    before = digest(output)
    message = refused(capsys, lambda: prepare(f"input={prose}", "max_length=32"))
    assert "it holds a finished result (manifest.json)" in message
    assert "overwrite=true" in message
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff")
    refused(capsys, lambda: prepare(f"input={bad}", "overwrite=true"))
    assert digest(output) == before
    prepare(f"input={prose}", "max_length=32", "overwrite=true")
    assert read_manifest(output).length == 32
    assert not (tmp_path / "corpus.work").exists()


def test_a_foreign_folder_is_never_replaced(
    prose: Path, tmp_path: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.docx").touch()
    message = refused(capsys, lambda: prepare(f"input={prose}", "overwrite=true"))
    assert "holds thesis.docx" in message
    (tmp_path / "corpus" / "thesis.docx").rename(tmp_path / "thesis.docx")
    (tmp_path / "corpus.work").mkdir()
    (tmp_path / "corpus.work" / "mine.txt").touch()
    message = refused(capsys, lambda: prepare(f"input={prose}"))
    assert "corpus.work: it holds mine.txt" in message
    assert (tmp_path / "corpus.work" / "mine.txt").exists()


def test_the_work_of_another_configuration_is_refused(
    prose: Path,
    tmp_path: Path,
    prepare: Prepare,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any) -> None:
        raise CorpusError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(steps, "divide", stop)
        refused(capsys, lambda: prepare(f"input={prose}"))
    message = refused(capsys, lambda: prepare(f"input={prose}", "max_length=32"))
    assert "begun with max_length = 16, now it is 32; delete" in message
    assert "overwrite=true" in message
    prepare(f"input={prose}", "max_length=32", "overwrite=true")
    assert read_manifest(tmp_path / "corpus").length == 32


def test_two_runs_do_not_share_a_work_folder(
    prose: Path, tmp_path: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.work").mkdir()
    program = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print()"
    )
    command = [sys.executable, "-c", f"{program}; input()", str(tmp_path / "corpus.work" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        message = refused(capsys, lambda: prepare(f"input={prose}"))
        other.kill()
    assert "another lert-ds prepare is at work" in message
    prepare(f"input={prose}")


def test_a_run_stopped_while_it_moved_the_corpus_only_moves_it(
    prose: Path, tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lert_ds.corpus.work import Work

    def stop(self: Work) -> None:
        (self.root / "finished").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Work, "install", stop)
        with pytest.raises(SystemExit):
            prepare(f"input={prose}")
    assert not (tmp_path / "corpus").exists()
    prepare(f"input={prose}")
    assert len(Corpus([tmp_path / "corpus"])) > 0
    assert not (tmp_path / "corpus.work").exists()


Spoil = Callable[[Path], None]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SPOILT: list[tuple[str, Spoil]] = [
    ("plan.json", cut_short),
    ("tokenizer/vocab.txt", change_a_byte),
    ("annotated/00001.jsonl.zst", cut_short),
    ("signatures/00001-000.hash.npy", change_a_byte),
    ("packed/00000.npz", Path.unlink),
    ("corpus/shards/00000-000.input_ids.npy", change_a_byte),
    ("corpus/manifest.json", cut_short),
]


def test_a_file_that_is_not_as_it_was_written_is_made_again(
    prose: Path,
    tmp_path: Path,
    prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lert_ds.corpus.work import Work

    keys = [f"input={prose}", "deduplicate=exact", "split_megabytes=0.005", "overwrite=true"]
    prepare(*keys)
    whole = digest(tmp_path / "corpus")

    def stop(self: Work) -> None:
        (self.root / "finished").touch()
        raise KeyboardInterrupt

    for name, spoil in SPOILT:
        with monkeypatch.context() as patch:
            patch.setattr(Work, "install", stop)
            with pytest.raises(SystemExit):
                prepare(*keys)
        capsys.readouterr()
        spoil(tmp_path / "corpus.work" / name)
        prepare(*keys)
        told = f"{name}: it is not as it was written" in capsys.readouterr().err
        assert told or name == "corpus/manifest.json", name
        assert digest(tmp_path / "corpus") == whole, name


def test_a_run_killed_after_the_move_only_clears_up(
    prose: Path, tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lert_ds import prepare as command

    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "remove_folder", stop)
        with pytest.raises(SystemExit):
            prepare(f"input={prose}")
    before = digest(tmp_path / "corpus")
    assert (tmp_path / "corpus.work").exists()
    prepare(f"input={prose}")  # not refused as one that holds a finished result
    assert digest(tmp_path / "corpus") == before
    assert not (tmp_path / "corpus.work").exists()


def test_another_run_after_such_a_one_is_told_that_there_is_a_result(
    prose: Path,
    tmp_path: Path,
    prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lert_ds import prepare as command

    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "remove_folder", stop)
        with pytest.raises(SystemExit):
            prepare(f"input={prose}")
    message = refused(capsys, lambda: prepare(f"input={prose}", "max_length=32"))
    assert "it holds a finished result" in message
    assert not (tmp_path / "corpus.work").exists()
    assert read_manifest(tmp_path / "corpus").length == 16


def test_parts_of_killed_runs_are_swept(
    prose: Path, tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lert_ds import files

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps, "divide", stop)
        with pytest.raises(SystemExit):
            prepare(f"input={prose}")
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    for name in ("corpus", "corpus.work", "corpus.work/x", "corpus.work/corpus/shards/x.npy"):
        place = tmp_path / name
        part = f".{place.name}.{files._machine()}.{dead.stdout.strip()}.part"
        place.with_name(part).mkdir(parents=True)
    prepare(f"input={prose}")
    assert not list(tmp_path.rglob(".*.part"))


def test_an_input_whose_path_looks_secret_is_read_and_not_told(
    tmp_path: Path, prepare: Prepare, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "planted-token"
    folder.mkdir()
    prose.rename(folder / "prose.txt")
    monkeypatch.setenv("MY_TOKEN", "planted-token")
    prepare(f"input={folder / 'prose.txt'}", "split_megabytes=0.005")
    files = [path for path in (tmp_path / "corpus").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if b"planted-token" in path.read_bytes()]
