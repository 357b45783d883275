"""The page: whole, small, and safe whatever a run's text says."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lert_ds.report.page import inline_json, page
from lert_ds.report.runs import read_runs

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>&\u2028\"'"


def write_run(
    folder: Path, config: Any = None, *, steps: int = 30, more: Sequence[Any] = ()
) -> Path:
    folder.mkdir(parents=True)
    lines: list[Any] = [
        {"kind": "train", "step": step, "samples": step * 8, "time": 1e9 + step,
         "mlm/loss": 9 - step / 10, "pos/accuracy": step / 100, "learning_rate": 1e-4}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    lines += [{"kind": "valid", "step": steps, "mlm/loss": 6.25, "pos/accuracy": 0.25}, *more]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps(config or {"seed": 1}))
    return folder


class _Page(HTMLParser):
    """The elements, attributes, texts and data of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._script = False
        self.feed(html)
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.cdata_elem:
            self.scripts[-1] += data
        else:
            self.text += data


def test_a_page_shows_its_runs(tmp_path: Path) -> None:
    runs = read_runs(
        [
            write_run(tmp_path / "a", {"seed": 1, "train": {"steps": 30}}),
            write_run(tmp_path / "b", {"seed": 1, "train": {"steps": 60}}, steps=60),
        ]
    )
    found = _Page(page(runs, "Compared"))
    assert [run["name"] for run in found.data["runs"]] == ["a", "b"]
    assert len(found.data["runs"][1]["curves"]["mlm/loss"]["train"]["v"]) == 60
    charts = [value for name, value in found.attributes if name == "data-metric"]
    assert charts == ["mlm/loss", "pos/accuracy", "learning_rate"]
    for text in ("Compared", "30 of 30", "60 of 60", "6.25", "train.steps", "@ 30"):
        assert text in found.text
    differing = found.text[found.text.index("Configuration") : found.text.index("all 2 keys")]
    assert "train.steps" in differing
    assert "seed" not in differing
    assert "seed" in found.text  # in the whole configuration, folded away


def test_the_tables_need_no_script(tmp_path: Path) -> None:
    html = page(read_runs([write_run(tmp_path / "a", {"deep": {"key": "value-of-key"}})]), "t")
    without = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    for text in ("deep.key", "value-of-key", "6.25", "240", "need JavaScript"):
        assert text in without


def test_text_of_a_run_is_shown_and_never_run(tmp_path: Path) -> None:
    event = {"kind": "event", "step": 3, "message": EVIL}
    metric = {"kind": "train", "step": 31, f"{EVIL}/loss": 1.0, EVIL: 2.0}
    folder = write_run(tmp_path / "a<b>&'", {EVIL: EVIL}, more=[event, metric])
    (folder / "summary.json").write_text(
        json.dumps({"baselines": {"mlm/loss": {EVIL: 6.1}}, "versions": {EVIL: EVIL}})
    )
    other = write_run(tmp_path / "b")
    html = page(read_runs([folder, other]), EVIL)
    found = _Page(html)
    assert found.tags.count("script") == 2
    assert "img" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert found.text.count("document.title='owned'") >= 8
    assert found.data["runs"][0]["events"] == [[3, EVIL]]
    charts = [value for name, value in found.attributes if name == "data-metric"]
    assert {f"{EVIL}/loss", EVIL} < set(charts)
    assert EVIL in found.data["runs"][0]["curves"]


def test_the_policy_lets_our_script_run_and_no_other(tmp_path: Path) -> None:
    html = page(read_runs([write_run(tmp_path / "a")]), "t")
    _, script = _Page(html).scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in html
    assert "default-src 'none'" in html


def test_nothing_is_fetched_and_script_and_style_are_small(tmp_path: Path) -> None:
    html = page(read_runs([write_run(tmp_path / "a")]), "t")
    addresses = [value for name, value in _Page(html).attributes if name in ("src", "href")]
    assert addresses == ["data:,"]
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket", html)
    style, script = html.split("<style>")[1].split("</style>")[0], _Page(html).scripts[1]
    assert len((style + script).encode()) < 25_000


def test_inlined_json_cannot_leave_its_element() -> None:
    text = inline_json({"a": "<!--<script></script>&\u2028"})
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"a": "<!--<script></script>&\u2028"}


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    html = page(read_runs([write_run(tmp_path / "a", steps=20_000)]), "t")
    assert len(html) < 200_000
    assert len(_Page(html).data["runs"][0]["curves"]["mlm/loss"]["train"]["v"]) <= 1000


def test_many_events_are_listed_up_to_a_number_that_is_told(tmp_path: Path) -> None:
    events = [{"kind": "event", "step": i, "message": f"event-{i}."} for i in range(700)]
    found = _Page(page(read_runs([write_run(tmp_path / "a", more=events)]), "t"))
    assert "event-499." in found.text
    assert "event-500." not in found.text
    assert "200 more in" in found.text


def test_a_run_with_events_alone_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "metrics.jsonl").write_text('{"kind": "event", "step": 0, "message": "it begins"}\n')
    found = _Page(page(read_runs([folder]), "t"))
    assert "it begins" in found.text
    assert "no curves to draw" in found.text


def test_the_best_of_several_runs_is_marked(tmp_path: Path) -> None:
    better = {"kind": "valid", "step": 31, "mlm/loss": 5.5}
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", more=[better])]
    html = page(read_runs(folders), "t")
    assert "<b>5.5</b>" in html
    assert "<b>6.25</b>" not in html


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_a_browser_draws_the_curves_and_runs_no_foreign_script(tmp_path: Path) -> None:
    event = {"kind": "event", "step": 3, "message": EVIL}
    runs = [write_run(tmp_path / "a", {EVIL: EVIL}, more=[event]), write_run(tmp_path / "b")]
    (runs[1] / "summary.json").write_text('{"baselines": {"mlm/loss": {"unigram": 6.1}}}')
    (tmp_path / "page.html").write_text(page(read_runs(runs), "Compared"), "utf-8")
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom",
        (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<title>Compared</title>" in done.stdout  # the foreign script would have changed it
    assert "Uncaught" not in done.stderr
    assert "Refused to" not in done.stderr
    drawn = re.findall(r'<path class="curve (\w+) c(\d)" d="M([^"]*)"', done.stdout)
    # Three charts of two runs, two of them with a held-out curve.
    assert sorted({kind for kind, _, _ in drawn}) == ["train", "valid"]
    assert len(drawn) == 2 * (3 + 2)
    assert all("NaN" not in path for _, _, path in drawn)
    assert done.stdout.count(">unigram 6.1</text>") == 1
    assert 'class="event c0"' in done.stdout


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to check the script with")
def test_the_script_as_inlined_is_valid(tmp_path: Path) -> None:
    script = _Page(page(read_runs([write_run(tmp_path / "a")]), "t")).scripts[1]
    (tmp_path / "script.js").write_text(script, "utf-8")
    subprocess.run(["node", "--check", str(tmp_path / "script.js")], check=True)
