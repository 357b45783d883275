from pathlib import Path

from lert_ds.doctor.memory import group_left, memory_facts

MIB = 2**20


def _group(root: Path, place: str, names: tuple[str, str], limit: str, used: int, key: str) -> None:
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n", "utf-8")
    (folder / names[1]).write_text(f"{used}\n", "utf-8")
    (folder / "memory.stat").write_text(f"anon 5\n{key} {10 * MIB}\n", "utf-8")


def _cgroup(root: Path, line: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line, "utf-8")


def test_the_tightest_group_above_counts_without_what_is_cached(tmp_path: Path) -> None:
    _cgroup(tmp_path, "0::/slurm/job\n")
    top, names, key = "sys/fs/cgroup", ("memory.max", "memory.current"), "inactive_file"
    _group(tmp_path, f"{top}/slurm/job", names, "max", 40 * MIB, key)
    _group(tmp_path, f"{top}/slurm", names, str(100 * MIB), 60 * MIB, key)
    assert group_left(tmp_path) == 50 * MIB


def test_groups_of_version_1(tmp_path: Path) -> None:
    _cgroup(tmp_path, "3:cpuset:/\n4:memory:/job\n")
    top = "sys/fs/cgroup/memory"
    names, key = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
    _group(tmp_path, f"{top}/job", names, str(200 * MIB), 150 * MIB, key)
    _group(tmp_path, top, names, str(2**63 - 4096), 0, key)  # no limit
    assert group_left(tmp_path) == 60 * MIB


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    assert group_left(tmp_path) is None
    assert memory_facts(tmp_path)["shared_total_bytes"] == 0


def test_this_host_has_memory() -> None:
    told = memory_facts()
    assert 0 < told["available_bytes"] <= told["total_bytes"]
