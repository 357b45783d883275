"""datatrove's executors under our stages: order, filters, Slurm's scripts."""

import os
from collections.abc import Callable
from pathlib import Path

import loguru._better_exceptions
import pytest

from lert_ds.config import parse
from lert_ds.corpus import build
from lert_ds.corpus.build import filter_names, make_filter, run_stages, stages
from lert_ds.corpus.settings import ExecutorConfig
from lert_ds.corpus.work import Work
from lert_ds.errors import ConfigError

MakeWork = Callable[..., Work]


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "a.txt"
    path.write_text("我爱北京。\n\n今天好。\n\n他来了。", "utf-8")
    return str(path)


def test_stages_follow_the_configuration(make_work: MakeWork, text: str) -> None:
    plain = [stage.name for stage in stages(make_work(input=text))]
    assert plain == ["annotate", "divide", "assemble", "finish"]


def test_more_stages(make_work: MakeWork, text: str) -> None:
    work = make_work(input=text, tokenizer="train", deduplicate="exact")
    assert [stage.name for stage in stages(work)] == [
        *("pieces", "learn", "sign", "compare"),
        *("annotate", "divide", "assemble", "finish"),
    ]


def test_filters_are_found_by_name() -> None:
    assert {"GopherQualityFilter", "C4QualityFilter", "RegexFilter"} <= set(filter_names())
    assert make_filter({"name": "RegexFilter", "regex_exp": "x"}).regex.pattern == "x"
    with pytest.raises(ConfigError, match=r"there is no filter 'Gopher'; there are C4Bad"):
        make_filter({"name": "Gopher"})
    with pytest.raises(ConfigError, match=r"filters: RegexFilter: .*regex"):
        make_filter({"name": "RegexFilter", "regexp": "x"})


@pytest.mark.usefixtures("pairs")
def test_what_filters_drop_is_counted(make_work: MakeWork, text: str) -> None:
    work = make_work(input=text, filters=[{"name": "RegexFilter", "regex_exp": "北京"}])
    assert run_stages(work, ExecutorConfig(workers=1))
    from lert_ds.data.shards import read_manifest

    manifest = read_manifest(work.output)
    assert manifest.counts["document dropped by RegexFilter"] == 1
    assert manifest.statistics["documents"] == 2


@pytest.mark.usefixtures("pairs")
def test_the_terminal_stays_quiet(
    make_work: MakeWork, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    work = make_work(input=text)
    run_stages(work, ExecutorConfig(workers=1))
    assert capfd.readouterr() == ("", "")
    assert "Processing done" in (work.root / "logs/annotate/stderr.log").read_text("utf-8")


def fake_slurm(folder: Path) -> None:
    """Write an sbatch that keeps what it is given and answers with a number, as Slurm's does."""
    folder.mkdir()
    script = folder / "sbatch"
    script.write_text(
        f"#!/bin/bash\nn=$(ls {folder}/jobs | wc -l)\n"
        f'cp "${{@: -1}}" {folder}/jobs/$n.slurm\necho "$@" > {folder}/jobs/$n.args\n'
        'echo "Submitted batch job $n"\n'
    )
    script.chmod(0o755)
    (folder / "jobs").mkdir()


def test_slurm_gets_a_chain_of_job_arrays(
    make_work: MakeWork, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    work = make_work(input=text, split_megabytes=1e-5, document_characters=100)
    executor = parse(
        ExecutorConfig,
        {
            "kind": "slurm",
            "partition": "gpu",
            "time": "01:00:00",
            "gpus_per_task": 1,
            "workers": 3,
            "arguments": {"qos": "long", "sbatch_args": {"account": "mine"}},
        },
        "test",
    )
    assert run_stages(work, executor) is False
    jobs = sorted((tmp_path / "bin/jobs").glob("*.slurm"), key=lambda path: int(path.stem))
    scripts = [job.read_text() for job in jobs]
    arrays = [script for script in scripts if "launch_pickled_pipeline" in script]
    names = [script.partition("--job-name=")[2].split("\n")[0] for script in arrays]
    assert names == ["lert-annotate", "lert-divide", "lert-assemble", "lert-finish"]
    for line in ("partition=gpu", "time=01:00:00", "qos=long", "account=mine"):
        assert all(f"#SBATCH --{line}" in script for script in arrays), line
    assert f"#SBATCH --array=0-{work.plan.tasks - 1}%3" in arrays[0]
    assert ["gpus=1" in script for script in arrays] == [True, False, False, False]
    # Each waits for the one before it; between them are datatrove's small statistics jobs.
    numbers = [jobs[scripts.index(script)].stem for script in arrays]
    waits = [(tmp_path / f"bin/jobs/{number}.args").read_text() for number in numbers]
    assert "--dependency" not in waits[0]
    for before, wait in zip(numbers, waits[1:], strict=False):
        assert f"--dependency=afterok:{before}" in wait


def test_slurm_and_ray_that_are_not_there(
    make_work: MakeWork, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = parse(ExecutorConfig, {"kind": "slurm", "partition": "x"}, "test")
    work = make_work(input=text)
    with pytest.raises(ConfigError, match=r'"slurm": there is no sbatch here'):
        run_stages(work, slurm)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="package ray is not installed"):
        run_stages(work, parse(ExecutorConfig, {"kind": "ray"}, "test"))


def test_loguru_looks_for_libraries_once(monkeypatch: pytest.MonkeyPatch) -> None:
    formatter = loguru._better_exceptions.ExceptionFormatter
    wanted = formatter()._lib_dirs
    build._look_up_libraries_once()
    formatter()
    monkeypatch.setattr("sysconfig.get_path", lambda *_: pytest.fail("it looked again"))
    assert formatter()._lib_dirs == wanted
