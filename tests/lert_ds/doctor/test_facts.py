import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from lert_ds.doctor import facts


def test_facts_are_plain_json_and_true() -> None:
    told = facts.facts()
    assert json.loads(json.dumps(told)) == told
    assert told["versions"]["numpy"] == np.__version__
    assert told["folder"] == str(Path.cwd())
    assert told["processor"]["cores"] >= 1
    assert told["memory"]["available_bytes"] > 2**20


def test_of_the_environment_only_the_names_of_the_list_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "verysecret")
    monkeypatch.setenv("HF_TOKEN", "verysecret")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    told = facts.facts()
    assert told["environment"]["OMP_NUM_THREADS"] == "7"
    assert "verysecret" not in json.dumps(told)
    assert not any(word in name for name in facts.SHOWN for word in ("KEY", "TOKEN", "SECRET"))


def test_a_path_without_compilers_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = facts.facts()
    assert not any(told["tools"].values())
    assert told["cuda_compiler"] is None


def test_another_version_and_a_changed_source_are_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "numpy-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n", "utf-8")
    before = facts.facts()["versions"]
    monkeypatch.syspath_prepend(tmp_path)
    assert facts.facts()["versions"]["numpy"] == "1.0"
    package = tmp_path / "lert_ds"
    package.mkdir()
    (package / "__init__.py").write_text("# another", "utf-8")
    monkeypatch.setattr("lert_ds.__file__", str(package / "__init__.py"))
    after = facts.facts()["versions"]
    assert after["source"] != before["source"]
    assert "commit" not in after


def test_ops_that_are_built_and_a_lock_that_was_left_are_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "fused_adam").mkdir()
    (tmp_path / "fused_adam" / "fused_adam.so").write_bytes(b"")
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.write_bytes(b"")
    old = time.time() - 3600
    os.utime(lock, (old, old))
    told = facts.facts()["ops"]
    assert told["folder"] == str(tmp_path)
    assert told["built"]["fused_adam"] == "built"
    assert told["built"]["cpu_lion"] is None
    assert 3500 < told["locks"][str(lock)] < 3700


def test_ops_are_looked_for_where_torch_builds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.cpp_extension import _get_build_directory

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr("os.makedirs", lambda *given, **named: None)
    assert facts.facts()["ops"]["folder"] == str(Path(_get_build_directory("op", False)).parent)
