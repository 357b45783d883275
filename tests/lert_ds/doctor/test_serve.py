import io
import json

import pytest

from lert_ds.doctor import serve


def _serve(*questions: dict[str, object]) -> list[dict[str, object]]:
    lines = io.StringIO("".join(json.dumps(question) + "\n" for question in questions))
    told = io.StringIO()
    serve.serve(lines, told)
    assert all(line.startswith(serve.MARK) for line in told.getvalue().splitlines())
    return [json.loads(line.removeprefix(serve.MARK)) for line in told.getvalue().splitlines()]


def test_every_question_has_one_answer_after_ready() -> None:
    ready, first, second = _serve({"ask": "time"}, {"ask": "see", "path": "/"})
    assert ready == serve.READY
    assert isinstance(first["seconds"], float)
    assert second == {"seen": False}  # a folder is no file


def test_what_goes_wrong_is_an_answer() -> None:
    _, unknown, lacking = _serve({"ask": "nothing"}, {"ask": "see"})
    assert unknown == {"error": "KeyError: 'nothing'"}
    assert lacking == {"error": "KeyError: 'path'"}


def test_what_a_library_prints_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(question: serve.Question) -> dict[str, object]:
        print("built successfully")  # noqa: T201
        return {}

    monkeypatch.setitem(serve.ANSWERS, "time", noisy)
    told, errors = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO('{"ask": "time"}\n'))
    monkeypatch.setattr("sys.stdout", told)
    monkeypatch.setattr("sys.stderr", errors)
    serve.serve_here()
    assert "built" not in told.getvalue()
    assert "built" in errors.getvalue()
