"""The Slurm that other tests launch with is a real one."""

from pathlib import Path
from typing import Any


def test_a_task_runs_on_every_host(cluster: Any, slurm: Any, tmp_path: Path) -> None:
    with cluster(tmp_path / "hosts") as hosts, slurm(hosts) as queue:
        printed = queue.run("srun", "--nodes=2", "--label", "hostname")
        assert sorted(printed.splitlines()) == ["0: node0", "1: node1"]
        name = queue.run("scontrol", "show", "hostnames", "node[0-1]")
        assert name.split() == ["node0", "node1"]
