"""The weights that did best in an evaluation so far: early choice, safe against interruption.

    step 120: f1 0.71 → kept      step 240: f1 0.74 → kept      step 360: f1 0.73 → passed over

They stand in one file of the run folder with what they reached, written whole, so that a run that
resumes knows them. Of equals the first stays.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lert_ds import distributed
from lert_ds.errors import CheckpointError, ConfigError
from lert_ds.files import write_whole
from lert_ds.train.engine import Engine
from lert_ds.train.peers import Peers

FILE = "best.safetensors"
"""In the run folder, while it is trained."""


class Best(NamedTuple):
    """What was best."""

    step: int
    values: dict[str, float]
    """Of the evaluation at that step."""


class BestWeights:
    """Keeps the whole weights of the evaluation with the highest value of one metric."""

    def __init__(self, folder: Path, metric: str, peers: Peers) -> None:
        """Go on with what an interrupted run kept in `folder`; all processes must call it."""
        self._path, self._metric = folder / FILE, metric
        kept = self._read_record() if distributed.is_main() and self._path.is_file() else None
        # Other hosts need not see the folder, and all have to decide alike.
        told = peers.gather(kept)[0]
        self.best: Best | None = None if told is None else Best(*told)

    def consider(self, engine: Engine, step: int, values: dict[str, float]) -> None:
        """Keep the engine's weights where `values` are the best so far; all processes must call it.

        Raises:
            ConfigError: the metric is none of the evaluation's.
        """
        if self._metric not in values:
            raise ConfigError(
                f"the best weights are chosen by {self._metric}, but the evaluation gives "
                f"{', '.join(sorted(values))}"
            )
        found = values[self._metric]
        if math.isnan(found) or (self.best and found <= self.best.values[self._metric]):
            return
        self.best = Best(step, dict(values))
        weights = engine.full_weights()
        if distributed.is_main():
            record = {"step": str(step), "values": json.dumps(values)}
            content = save(weights, metadata=record)
            write_whole(self._path, lambda file: file.write(content))

    def read(self) -> dict[str, Tensor]:
        """Return the best weights, on the main process; elsewhere nothing."""
        assert self.best is not None, "nothing was evaluated"
        if not distributed.is_main():
            return {}
        with safe_open(self._path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def remove(self) -> None:
        """Remove the file, on the main process."""
        if distributed.is_main():
            self._path.unlink(missing_ok=True)

    def _read_record(self) -> Best:
        try:
            with safe_open(self._path, "pt") as file:
                record = file.metadata()
            return Best(int(record["step"]), json.loads(record["values"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self._path}: the best weights so far cannot be read ({error}); start over with "
                "overwrite=true"
            ) from error
