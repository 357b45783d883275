"""Sums over micro-batches and ranks, divided once; and the plain-text record of a run."""

import errno
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lert_ds.distributed import sum_over_ranks
from lert_ds.objective import Metrics
from lert_ds.redaction import redact_tree

logger = logging.getLogger(__name__)

_LONGEST_WAITING = 100_000


class MetricSums:
    """Adds `[sum, count]` pairs on their device, without waiting for it, until they are read."""

    def __init__(self) -> None:
        """Start empty."""
        self._sums: dict[str, Tensor] = {}

    def add(self, metrics: Metrics) -> None:
        """Add the pairs of one micro-batch: tensors `[..., 2]` of (sum, count)."""
        for name, pairs in metrics.items():
            pairs = pairs.detach().double()
            self._sums[name] = self._sums[name] + pairs if name in self._sums else pairs

    def reduce(self) -> dict[str, float]:
        """Return the value of each metric over all ranks, and start anew; all ranks must call it.

        One all-reduce for all names. A tensor of several pairs (classes) gives the mean of the
        ratios whose count is not 0; a metric without any count is left out.
        """
        values = {}
        for name, pairs in self._over_ranks().items():
            counted = pairs[pairs[:, 1] > 0]
            if len(counted):
                values[name] = float((counted[:, 0] / counted[:, 1]).mean())
        self._sums = {}
        return values

    def state(self) -> dict[str, list[list[float]]]:
        """Return the sums so far over all ranks, for a checkpoint; all ranks must call it."""
        return {name: pairs.tolist() for name, pairs in self._over_ranks().items()}

    def restore(self, state: Mapping[str, list[list[float]]], device: torch.device) -> None:
        """Go on from sums that `state` gave; one rank does, for all."""
        for name, pairs in state.items():
            values = torch.tensor(pairs, dtype=torch.float64, device=device)
            self._sums[name] = values[0] if len(values) == 1 else values

    def _over_ranks(self) -> dict[str, Tensor]:
        """Return the pairs [pairs, 2] of each metric, summed in one all-reduce."""
        names = sorted(self._sums)
        if not names:
            return {}
        flat = sum_over_ranks(torch.cat([self._sums[name].reshape(-1) for name in names])).cpu()
        sizes = [self._sums[name].numel() for name in names]
        parts = zip(names, torch.split(flat, sizes), strict=True)
        return {name: part.reshape(-1, 2) for name, part in parts}


def report_line(kind: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return one record of metrics.jsonl: `kind` is train, valid or event."""
    return {"kind": kind, "step": step, "time": round(time.time(), 3), **values}


class Record:
    """metrics.jsonl: a line a record. What a full disk refuses waits and is written later.

    A training that can still compute does not end for want of its own diary.
    """

    def __init__(self, path: Path) -> None:
        """Go on with `path`; a last line that a crash cut short is removed."""
        self._path = path
        self._waiting: deque[bytes] = deque(maxlen=_LONGEST_WAITING)
        self._lock = threading.Lock()
        self._refused = False
        mend_json_lines(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; a crash can cut the last line short, never an earlier one."""
        with self._lock:
            text = json.dumps(redact_tree(record), ensure_ascii=False)
            self._waiting.append(f"{text}\n".encode())
            try:
                while self._waiting:
                    self._write(self._waiting[0])
                    self._waiting.popleft()
                self._refused = False
            except OSError as error:
                if not self._refused:
                    logger.warning("%s: %s; its lines wait for room", self._path, error.strerror)
                self._refused = True

    def _write(self, line: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            except OSError:
                file.truncate(start)
                raise


def mend_json_lines(path: Path) -> None:
    """Cut a last line that a crash left unfinished, so that the next one does not join it."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        kept = end
        while kept:
            start = max(0, kept - 65_536)
            file.seek(start)
            newline = file.read(kept - start).rfind(b"\n")
            if newline >= 0:
                kept = start + newline + 1
                break
            kept = start
        if kept < end:
            file.truncate(kept)
