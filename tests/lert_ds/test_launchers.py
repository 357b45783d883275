"""Ranks from srun and from mpirun; what is no rank of ours is left alone."""

import pytest

from lert_ds.errors import ConfigError
from lert_ds.launchers import LOWEST_PORT, PORTS, adopt_ranks, expand_counts, expand_hosts

# Taken from Slurm 22.05: a job of two hosts, and what its batch script's own shell sees of it.
BATCH = {
    "SLURM_JOB_ID": "41",
    "SLURM_JOB_NODELIST": "node[0-2]",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2,1",
}
# The same within a step of it that leaves the first host out.
STEP = BATCH | {
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def adopted(environment: dict[str, str]) -> dict[str, str]:
    """What is added to an environment."""
    after = dict(environment)
    adopt_ranks(after)
    assert environment.items() <= after.items()
    return {name: value for name, value in after.items() if name not in environment}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", ["node1"]),
        ("node[01-03,7]", ["node01", "node02", "node03", "node7"]),
        ("a1,b[8-10],c", ["a1", "b8", "b9", "b10", "c"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("rack[1-2]n[1,3]-ib", ["rack1n1-ib", "rack1n3-ib", "rack2n1-ib", "rack2n3-ib"]),
        ("gpu-a,gpu-b.example.org", ["gpu-a", "gpu-b.example.org"]),
    ],
)
def test_a_list_of_hosts_in_slurms_short_form(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


def test_tasks_of_each_host_in_slurms_short_form() -> None:
    assert expand_counts("4") == [4]
    assert expand_counts("2(x3),1,3(x2)") == [2, 2, 2, 1, 3, 3]


def test_a_step_of_srun_gives_its_ranks_and_where_to_meet() -> None:
    found = adopted(STEP)
    assert LOWEST_PORT <= int(found.pop("MASTER_PORT")) < LOWEST_PORT + PORTS
    assert found == {
        "RANK": "1",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "node1",
    }
    last = STEP | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}
    found = adopted(last)
    assert (found["RANK"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("2", "0", "1")


def test_the_ranks_of_a_step_meet_at_one_port_and_those_of_others_elsewhere() -> None:
    def port(**changes: str) -> str:
        return adopted(STEP | changes)["MASTER_PORT"]

    assert port() == port(SLURM_PROCID="2", SLURM_NODEID="1")
    assert len({port(), port(SLURM_JOB_ID="42"), port(SLURM_STEP_ID="3")}) == 3
    assert port() == port(SLURM_JOB_ID=str(41 + PORTS))  # whatever the number


def test_a_batch_scripts_own_shell_is_one_process() -> None:
    assert adopted(BATCH) == {}


def test_a_step_of_one_task_is_one_process() -> None:
    alone = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
    assert adopted(STEP | alone) == {}


def test_mpi_gives_its_ranks() -> None:
    here = MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    assert adopted(here) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    found = adopted(MPI | {"MASTER_ADDR": "node7", "MASTER_PORT": "4000"})
    assert found == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    hydra = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    assert adopted(hydra)["RANK"] == "1"


def test_mpirun_over_srun_gives_mpis_ranks() -> None:
    """What mpirun starts its own daemons with is not the ranks'."""
    assert adopted(STEP | MPI | {"MASTER_ADDR": "node1"})["RANK"] == "3"


def test_srun_with_an_mpi_plugin_gives_srun_s_ranks() -> None:
    assert adopted(STEP | {"PMI_RANK": "9", "PMI_SIZE": "10"})["RANK"] == "1"


def test_mpi_on_several_hosts_without_a_place_to_meet_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"OMPI_COMM_WORLD_SIZE = 4 .*MASTER_ADDR"):
        adopt_ranks(dict(MPI))


@pytest.mark.parametrize("others", [STEP, MPI])
def test_a_launcher_that_set_the_rank_is_believed(others: dict[str, str]) -> None:
    """torchrun or `deepspeed --no_ssh` within srun: a task is a launcher there, not a rank."""
    assert adopted(others | {"RANK": "0", "WORLD_SIZE": "8"}) == {}
