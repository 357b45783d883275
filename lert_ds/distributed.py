"""This process among the others: rank, world size, and sums over all of them.

The `deepspeed` launcher and torchrun hand the ranks over in the environment; what Slurm and MPI
hand over instead is put into the same names by `launchers.adopt_ranks` at the start.
torch is imported where it is used: the command line asks for the rank before it knows whether a
command needs torch, whose import takes seconds.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def rank() -> int:
    """Return this process's number among all, 0 where there is one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Return how many of the processes run on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", str(world_size()))))


def is_main() -> bool:
    """Return whether this process writes and prints for all."""
    return rank() == 0


def sum_over_ranks(tensor: "Tensor") -> "Tensor":
    """Return the sum of `tensor` over all processes, in one all-reduce."""
    if world_size() > 1:
        import torch.distributed

        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        import torch.distributed

        torch.distributed.barrier()
