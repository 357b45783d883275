"""The end of a preparation: what may be replaced, and what a corpus folder then says."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lert_ds.corpus import finish as module
from lert_ds.corpus import steps
from lert_ds.corpus.assemble import assemble
from lert_ds.corpus.finish import finish, refuse_output
from lert_ds.corpus.work import Work
from lert_ds.data.shards import HELD_OUT, Corpus, read_manifest
from lert_ds.errors import ConfigError, CorpusError


class Item:
    def __init__(self, text: str, number: int) -> None:
        self.text, self.metadata = text, {"number": number, "line": 1}


@pytest.fixture
def ready(make_work: Callable[..., Work], tmp_path: Path, pairs: None) -> Work:
    """Return a work folder that lacks the last stage only."""
    text = "\n\n".join(f"{i}我爱北京。今天好。" for i in range(20))
    (tmp_path / "a.txt").write_text(text, "utf-8")
    work = make_work(input=str(tmp_path / "a.txt"), held_out=0.3, keep_annotations=True)
    tally = steps.Tally()

    def items() -> Iterator[Item]:
        for document in steps.read(work, 0, tally, False):
            yield Item(document.text, document.number)

    steps.annotate(work, 0, items(), tally)
    steps.divide(work)
    assemble(work, 0)
    return work


def test_a_corpus_and_its_held_out_part(ready: Work) -> None:
    finish(ready)
    corpus, held_out = Corpus([ready.output]), Corpus([ready.output / HELD_OUT])
    corpus.verify()
    held_out.verify()
    documents = [c.manifest.statistics["documents"] for c in (corpus, held_out)]
    assert sum(documents) == 20
    assert min(documents) > 0
    Corpus([ready.output, ready.output / HELD_OUT])  # they agree
    names = {path.name for path in ready.output.iterdir()}
    assert {"statistics.md", "statistics.json", "summary.json", "tokenizer.json"} <= names
    assert (ready.output / "annotated" / "00000.jsonl.zst").is_file()
    manifest = read_manifest(ready.output)
    assert manifest.instances == len(corpus)
    assert manifest.config["held_out"] == 0.3
    assert "seconds" not in str(manifest.statistics)
    assert manifest.versions.keys() >= {"lert-ds", "tokenizers", "jieba"}


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("function", ["write_manifest", "save_tokenizer"])
def test_a_finish_that_was_stopped_can_be_repeated(
    ready: Work, monkeypatch: pytest.MonkeyPatch, function: str, call: int
) -> None:
    original, calls = getattr(module, function), []

    def stop(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, stop)
        with pytest.raises(KeyboardInterrupt):
            finish(ready)
    assert not ready.output.exists()
    finish(ready)
    assert len(Corpus([ready.output])) > 0
    assert (ready.output / "annotated" / "00000.jsonl.zst").is_file()


def test_a_side_without_instances_is_refused(ready: Work) -> None:
    record = ready.read("packed/00000.json")
    record[HELD_OUT]["totals"]["instances"] = 0
    ready.record("packed", 0, record)
    with pytest.raises(CorpusError, match=r"nothing is left for the held_out corpus"):
        finish(ready)
    assert not ready.output.exists()


def test_outputs_that_must_not_be_replaced(tmp_path: Path) -> None:
    refuse_output(tmp_path / "new", overwrite=False)
    output = tmp_path / "corpus"
    output.mkdir()
    refuse_output(output, overwrite=False)
    (output / "manifest.json").touch()
    with pytest.raises(ConfigError, match=r"corpus: it holds a finished result .*overwrite=true"):
        refuse_output(output, overwrite=False)
    refuse_output(output, overwrite=True)
    (output / "thesis.docx").touch()
    with pytest.raises(ConfigError, match=r"holds thesis.docx, which is no part of a corpus"):
        refuse_output(output, overwrite=True)
    with pytest.raises(ConfigError, match=r"thesis.docx: it is a file; name a folder"):
        refuse_output(output / "thesis.docx", overwrite=True)
