"""What the processes of a training tell each other beside gradients and metrics.

A channel of its own (gloo, on the processor), so that a word never waits for a device. Flags travel
one step behind: the exchange that a step starts is read at the end of the next, by which time it
has long arrived. All processes read the same exchange, so all stop at the same step.
"""

import datetime
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed

from lert_ds import distributed
from lert_ds.errors import UserError

T = TypeVar("T")

_CHUNK_BYTES = 2**26
_SEEN = ".seen-"


class Peers:
    """This process among those that train with it; alone it talks to nobody."""

    def __init__(self, timeout_seconds: float) -> None:
        """Open the channel; all processes must do so together."""
        self.alone = distributed.world_size() == 1
        self._group: Any = None
        self._pending: tuple[torch.Tensor, Any] | None = None
        if not self.alone:
            timeout = datetime.timedelta(seconds=timeout_seconds)
            self._group = torch.distributed.new_group(backend="gloo", timeout=timeout)

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, in the order of ranks; plain JSON values."""
        if self.alone:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        world = distributed.world_size()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
        torch.distributed.all_gather(sizes, torch.tensor([len(content)]), group=self._group)
        largest = int(max(sizes))
        padded = torch.zeros(largest, dtype=torch.uint8)
        padded[: len(content)] = content
        rows = [torch.zeros(largest, dtype=torch.uint8) for _ in range(world)]
        torch.distributed.all_gather(rows, padded, group=self._group)
        return [
            json.loads(row[: int(size)].numpy().tobytes())
            for row, size in zip(rows, sizes, strict=True)
        ]

    def agree(self, error: UserError | None) -> None:
        """Raise a user's error on all processes where one has it: nobody waits for that one."""
        told = self.gather(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, found in enumerate(told):
            if found is not None:
                raise UserError(f"rank {rank}: {found}")

    def of_main(self, find: Callable[[], T]) -> T:
        """Return what `find` gives on the main process, to all: only that one need see the disk.

        Plain JSON values; a user's error that it raises is raised by all.
        """
        found: T | None = None
        mistake: UserError | None = None
        if distributed.is_main():
            try:
                found = find()
            except UserError as error:
                mistake = error
        self.agree(mistake)
        told: T = self.gather(found)[0]
        return told

    def exchange(self, *flags: int) -> tuple[int, ...]:
        """Send `flags` and return the largest of each over all processes, of the call before.

        The first call returns zeros.
        """
        sent = torch.tensor(flags, dtype=torch.int64)
        if self.alone:
            return flags
        previous, self._pending = self._pending, None
        work = torch.distributed.all_reduce(
            sent, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        self._pending = (sent, work)
        if previous is None:
            return (0,) * len(flags)
        received, earlier = previous
        earlier.wait()
        return tuple(received.tolist())

    def settle(self) -> None:
        """Wait for the exchange that is under way, where there is one."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None

    def leader(self, folder: Path) -> int:
        """Return the lowest rank that sees the same `folder`; it acts for all of those.

        On a shared disk that is rank 0 for everyone, else one process of each host. The folder is
        made. Files are looked up by names that were never asked for, so no cache of NFS answers.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self.alone:
            return 0
        token = self.gather(secrets.token_hex(8))[0]
        own = folder / f"{_SEEN}{token}-{distributed.rank()}"
        own.touch()
        try:
            self.gather(None)  # all have made theirs
            seen = (
                r for r in range(distributed.rank()) if (folder / f"{_SEEN}{token}-{r}").exists()
            )
            lowest = next(seen, distributed.rank())
            self.gather(None)  # all have looked
        finally:
            own.unlink(missing_ok=True)
        return lowest

    def copy_file(self, path: Path, source: int, receives: bool) -> None:
        """Copy a file from rank `source` to `path` on the processes that receive it.

        All processes must call it together; those that neither send nor receive pass the bytes on.
        """
        sends = distributed.rank() == source
        size = int(self.gather(path.stat().st_size if sends else 0)[source])
        temporary = path.with_name(f".{path.name}.part")
        with (
            path.open("rb") if sends else open(temporary if receives else "/dev/null", "wb")  # noqa: PTH123
        ) as file:
            for start in range(0, size, _CHUNK_BYTES):
                length = min(_CHUNK_BYTES, size - start)
                chunk = torch.empty(length, dtype=torch.uint8)
                if sends:
                    chunk = torch.frombuffer(bytearray(file.read(length)), dtype=torch.uint8)
                torch.distributed.broadcast(chunk, source, group=self._group)
                if receives:
                    file.write(chunk.numpy().data)
        if receives:
            temporary.rename(path)
