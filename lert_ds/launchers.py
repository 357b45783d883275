"""Ranks as Slurm's srun and MPI's mpirun tell them, in the names that torch and DeepSpeed read.

    srun:    SLURM_PROCID=3 SLURM_LOCALID=1 SLURM_STEP_NUM_TASKS=4 SLURM_STEP_NODELIST=node[1-2]
    adopted: RANK=3 LOCAL_RANK=1 WORLD_SIZE=4 LOCAL_WORLD_SIZE=2 MASTER_ADDR=node1 MASTER_PORT=…

The `deepspeed` launcher and torchrun set those themselves.
"""

import itertools
import os
import re
from collections.abc import Mapping, MutableMapping

from lert_ds.errors import ConfigError

# Rank, world size, rank on the host, size on the host.
MPI_NAMES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),  # Open MPI
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE",
     "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),  # MVAPICH
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH and Intel MPI
)  # fmt: skip
MPI_PORT = 29_500
"""The port of DeepSpeed and torch, where none is said."""
LOWEST_PORT, PORTS = 12_000, 20_000
"""Where a job's port is taken from: below those that Linux gives to outgoing connections."""


def adopt_ranks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Write the ranks of an srun step or of MPI to torch's names in `environment`.

    Nothing is changed where a launcher has set the rank, or where there is one process: also not in
    a batch script's own shell, in which Slurm counts the tasks of the job but has started none.
    MASTER_ADDR and MASTER_PORT that are there stay.

    Raises:
        ConfigError: MPI's processes are on several hosts and nothing says where to meet.
    """
    if "RANK" in environment:
        return
    # MPI first: its mpirun may start its daemons by srun, whose variables are not the ranks'.
    found = _from_mpi(environment) or _from_slurm(environment)
    if int(found.get("WORLD_SIZE", "1")) > 1:
        for name, value in found.items():
            environment.setdefault(name, value)


def _from_mpi(environment: Mapping[str, str]) -> dict[str, str]:
    for names in MPI_NAMES:
        if not all(name in environment for name in names):
            continue
        rank, size, local_rank, local_size = (environment[name] for name in names)
        if size != local_size and "MASTER_ADDR" not in environment:
            raise ConfigError(
                f"{names[1]} = {size} processes of MPI on several hosts, but no MASTER_ADDR; hand "
                "the address of rank 0's host over: mpirun -x MASTER_ADDR=…, or a line of "
                "~/.deepspeed_env"
            )
        return {
            "RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_RANK": local_rank,
            "LOCAL_WORLD_SIZE": local_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(MPI_PORT),
        }
    return {}


def _from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    # A batch script's shell has SLURM_PROCID and SLURM_NTASKS too; SLURM_STEP_… only srun sets.
    if "SLURM_PROCID" not in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return {}
    tasks = expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks[int(environment["SLURM_NODEID"])]),
        # Rank 0 runs on the first host of the step, in Slurm's own distributions of tasks.
        "MASTER_ADDR": expand_hosts(environment["SLURM_STEP_NODELIST"])[0],
        # Jobs, and steps of a job, that share a host at the same time need not meet.
        "MASTER_PORT": str(LOWEST_PORT + (job + 4_999 * step) % PORTS),
    }


def expand_hosts(text: str) -> list[str]:
    """Return the hosts that Slurm's short form names: `n[08-10,12],gpu1` is five of them."""
    hosts = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        # Literal text and the insides of brackets, in turns.
        parts = re.split(r"\[([^\]]*)\]", item)
        choices = [_numbers(p) if place % 2 else [p] for place, p in enumerate(parts)]
        hosts += ["".join(chosen) for chosen in itertools.product(*choices)]
    return hosts


def _numbers(text: str) -> list[str]:
    numbers = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last or first
        width = len(first)  # leading zeros are part of a name
        numbers += [f"{n:0{width}}" for n in range(int(first), int(last) + 1)]
    return numbers


def expand_counts(text: str) -> list[int]:
    """Return the tasks of each host of a step: `2(x3),1` is 2, 2, 2, 1."""
    counts = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts
