"""A real Slurm on the hosts of `cluster.py`: slurmctld on node0, a slurmd on every host."""

import shutil
import subprocess
import time
from typing import Any, Self

PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "srun": "slurm-client"}
"""Program → the Debian package that has it."""
START_SECONDS = 60

# Authentication by name alone: no user but root is here, and munge would be one more daemon a host.
CONFIGURATION = """
ClusterName=hosts
SlurmctldHost=node0
SlurmUser=root
AuthType=auth/none
# A job that is queued again waits until its credential has run out: two minutes by default, and
# where less than 5 s is said.
AuthInfo=cred_expire=5
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=5
SlurmdTimeout=60
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return which Debian packages are not there, or nothing."""
    absent = sorted({name for tool, name in PACKAGES.items() if not shutil.which(tool)})
    return f"missing Debian packages: {' '.join(absent)} (make host-tools)" if absent else ""


class Slurm:
    """Slurm on a cluster that is up; a context manager that waits until all nodes are idle."""

    def __init__(self, cluster: Any) -> None:
        """Take the cluster; nothing is started yet."""
        self._cluster = cluster
        self.folder = cluster.folder / "slurm"
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        """Start the daemons."""
        (self.folder / "state").mkdir(parents=True)
        nodes = [
            f"NodeName={name} NodeAddr={self._cluster.address(number)} CPUs=2 State=UNKNOWN"
            for number, name in enumerate(self._cluster.names)
        ]
        text = CONFIGURATION.format(folder=self.folder, nodes="\n".join(nodes))
        (self.folder / "slurm.conf").write_text(text, "utf-8")
        self._start("slurmctld", 0, "slurmctld", "-D", "-i")
        for number, name in enumerate(self._cluster.names):
            self._start(name, number, "slurmd", "-D", "-N", name)
        end = time.monotonic() + START_SECONDS
        while self.run("sinfo", "-h", "-N", "-o", "%T").split() != ["idle"] * len(nodes):
            if time.monotonic() > end or any(p.poll() is not None for p in self._daemons):
                self.__exit__()
                raise RuntimeError("\n".join(f.read_text() for f in self.folder.glob("*.log")))
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        """End the daemons; what they started ends with the hosts."""
        for process in self._daemons:
            process.kill()
            process.wait()

    def run(self, *command: str, **options: Any) -> str:
        """Run a command of Slurm's on node0 and return what it printed."""
        done = self._cluster.run(command, environment=self.environment, **options)
        return str(done.stdout)

    def _start(self, name: str, number: int, *command: str) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            self._daemons.append(
                self._cluster.start(
                    command, number, environment=self.environment, stdout=log, stderr=log
                )
            )
