"""`lert-ds report`: where the page goes, what is printed, what is refused and left untouched."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lert_ds import cli


def write_run(folder: Path, loss: float = 2.5) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(
        f'{{"kind": "valid", "step": 1, "mlm/loss": 9.0}}\n'
        f'{{"kind": "valid", "step": 2, "mlm/loss": {loss}}}\n'
    )
    (folder / "config.json").write_text("{}")
    return folder


def report(*words: object) -> None:
    cli.main(["report", *map(str, words)])


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        report(*words)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_the_page_of_one_run_lies_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a")
    report(run)
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    html = (run / "report.html").read_text("utf-8")
    assert "<title>a</title>" in html
    report(run)  # a page of ours is replaced
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json", "metrics.jsonl", "report.html",
    ]  # fmt: skip


def test_the_page_of_several_runs_lies_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report(write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    assert capsys.readouterr().out == "report.html\n"
    assert "<title>a, b</title>" in (tmp_path / "report.html").read_text("utf-8")
    assert not (tmp_path / "a" / "report.html").exists()


def test_output_and_title_are_followed(tmp_path: Path) -> None:
    report(write_run(tmp_path / "a"), "--output", tmp_path / "x.html", "--title", "Löhne & 中文")
    assert "<h1>Löhne &amp; 中文</h1>" in (tmp_path / "x.html").read_text("utf-8")


def test_json_prints_final_and_best_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a", loss=9.5)
    report(run, "--json")
    (summary,) = json.loads(capsys.readouterr().out)
    assert summary["name"] == "a"
    assert summary["metrics"]["mlm/loss"]["valid"] == {
        "final": 9.5, "final_step": 2, "best": 9.0, "best_step": 1,
    }  # fmt: skip
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none", None, "there is no such folder"),
        ("bare", [], "metrics.jsonl: there is no such file"),
        ("empty", [""], "metrics.jsonl: it holds no complete report"),
        ("broken", ["{", '{"kind": "train", "step": 1, "loss": 1}'], "metrics.jsonl, line 1: "),
    ],
)
def test_a_run_that_cannot_be_read_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: list[str] | None,
    expected: str,
) -> None:
    if content is not None:
        (tmp_path / name).mkdir()
    if content:
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(content))
    error = refusal(capsys, tmp_path / name)
    assert expected in error
    assert str(tmp_path / name) in error
    assert not (tmp_path / name / "report.html").exists()


def test_an_output_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a")
    missing = tmp_path / "no" / "such" / "page.html"
    assert f"{missing}: cannot be written" in refusal(capsys, run, "--output", missing)
    below_a_file = run / "config.json" / "page.html"
    assert f"{below_a_file}: cannot be written" in refusal(capsys, run, "--output", below_a_file)


def test_an_output_that_is_no_page_is_left_untouched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a")
    before = (run / "metrics.jsonl").read_bytes()
    error = refusal(capsys, run, "--output", run / "metrics.jsonl")
    assert "metrics.jsonl: it exists and is no page of this command" in error
    assert (run / "metrics.jsonl").read_bytes() == before
    assert "it exists and is no page" in refusal(capsys, run, "--output", run)


def test_a_lone_surrogate_does_not_stop_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (run / "config.json").write_text('{"key": "\\ud800"}')
    report(run)
    assert (run / "report.html").stat().st_size > 1000


def test_a_fine_tuning_is_on_the_page_with_the_curves_of_its_seeds(
    tmp_path: Path,
    write_finetune: Callable[..., Path],
    write_seed: Callable[[Path, int], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_finetune(tmp_path / "finetune-ocnli")
    write_seed(folder, 1)
    report(folder)
    html = (folder / "report.html").read_text("utf-8")
    assert "<title>finetune-ocnli</title>" in html
    assert "1 fine-tuning, 1 run" in html
    assert "<b>75.0 (72.0)</b>" in html
    assert 'data-metric="accuracy"' in html
    capsys.readouterr()
    report(folder, "--json")
    *_, told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["task"]) == ("finetune-ocnli", "ocnli")


def test_markdown_by_the_suffix(
    tmp_path: Path, write_finetune: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_finetune(tmp_path / "runs" / "a")
    write_finetune(tmp_path / "runs" / "b", "tnews")
    output = tmp_path / "results.md"
    report(tmp_path / "runs", "--output", output)
    before = output.read_text("utf-8")
    assert "| OCNLI dev<br>accuracy |" in before
    report(tmp_path / "runs", "--output", output)  # a file of ours is replaced
    assert output.read_text("utf-8") == before
    output.write_text("# My notes\n", "utf-8")
    assert "it exists and is no page" in refusal(capsys, tmp_path / "runs", "--output", output)
    assert output.read_text("utf-8") == "# My notes\n"


def test_markdown_of_curves_alone_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a")
    error = refusal(capsys, run, "--output", tmp_path / "x.md")
    assert "Markdown takes the tables of fine-tunings" in error
    assert not (tmp_path / "x.md").exists()
