"""How long a model of any shape takes on this machine, from a few that are timed.

    milliseconds = fixed + Σ layers (layer + heads · head + neurons · neuron) + pieces · piece

Small models with random weights and the hidden size in question are timed in turns, round after
round, so that a busy minute meets all of them; the median of the rounds' medians counts. The five
numbers are fitted by least squares of the relative errors, none of them below 0.

Attention grows with the square of the length, so a table is for one length. The logits are those of
one [MASK] in each text: what it costs to fill it.
"""

import itertools
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lert_ds import machine
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError
from lert_ds.files import write_json
from lert_ds.modeling_lert import LertForPreTraining
from prune.search.cost import LinearCost, head_size_of, parts_of

Runtime = Literal["torch", "onnx_fp32", "onnx_int8"]
FORMAT = "lert-ds latency 1"
KEY = "latency_ms"
_LIBRARIES: dict[Runtime, tuple[str, ...]] = {
    "torch": ("torch",),
    "onnx_fp32": ("torch", "onnxruntime"),
    "onnx_int8": ("torch", "onnxruntime"),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatencyTable:
    """What `measure_table` found out."""

    facts: dict[str, Any]
    """All that the milliseconds depend on: runtime, sizes, threads, processor, versions."""
    cost: LinearCost
    """Milliseconds of a batch."""
    measured: tuple[tuple[dict[str, int], float], ...]
    """The shapes that were timed, by `prune.search.cost.parts_of`, with their milliseconds."""

    def predict(self, config: LertConfig) -> float:
        """Return the milliseconds of a batch by a model of `config`.

        Raises:
            ConfigError: its hidden states or heads are of another size than those timed.
        """
        for key, size in _sizes(config).items():
            if size != self.facts[key]:
                raise ConfigError(
                    f"table: it was measured at {key} = {self.facts[key]}, but the model has "
                    f"{size}; name another file"
                )
        return self.cost(config)

    def write(self, path: Path) -> None:
        """Write the table as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tree = {"format": FORMAT, "facts": self.facts, "cost": asdict(self.cost)}
        write_json(path, tree | {"measured": [list(row) for row in self.measured]})


def read(path: Path) -> LatencyTable:
    """Return the table in the file `path`.

    Raises:
        ConfigError: it is not there, or no table.
    """
    try:
        tree = json.loads(path.read_text("utf-8"))
        if tree["format"] != FORMAT:
            raise KeyError(tree["format"])
        measured = tuple((dict(shape), float(time_ms)) for shape, time_ms in tree["measured"])
        return LatencyTable(tree["facts"], LinearCost(**tree["cost"]), measured)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"table = {path}: no table of latencies; delete it or name another"
        ) from error


def reuse(path: Path | None, config: LertConfig, runtime: Runtime, **settings: Any) -> LatencyTable:
    """Return the table in `path` where it was measured under these very facts; else measure it.

    Args:
        path: Where the table is kept; None keeps it nowhere.
        config: As of `measure_table`.
        runtime: The same.
        **settings: The others of `measure_table`.

    Raises:
        ConfigError: the file is no table, or see `measure_table`.
    """
    shown = {key: settings[key] for key in ("batch_size", "length", "threads") if key in settings}
    if path is not None and path.exists():
        table = read(path)
        if table.facts == describe(config, runtime, **shown):
            log.info("%s: this table of latencies is reused", path)
            return table
        log.info("%s: latencies of another model, setting or machine; measured again", path)
    table = measure_table(config, runtime=runtime, **settings)
    if path is not None:
        table.write(path)
    return table


def describe(
    config: LertConfig,
    runtime: Runtime,
    *,
    batch_size: int = 1,
    length: int = 128,
    threads: int = 1,
) -> dict[str, Any]:
    """Return all that latencies depend on, as plain JSON values; see `measure_table`."""
    return {
        **_sizes(config),
        # Of the largest that is timed: the fit is for what lies below.
        "layers": config.num_hidden_layers,
        "intermediate_size": _widest(config),
        "vocabulary": config.vocab_size,
        "runtime": runtime,
        "batch_size": batch_size,
        "length": length,
        "threads": threads,
        "machine": machine.description(_LIBRARIES[runtime]),
    }


def measure_table(
    config: LertConfig,
    *,
    runtime: Runtime,
    batch_size: int = 1,
    length: int = 128,
    threads: int = 1,
    rounds: int = 9,
    calls: int = 8,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyTable:
    """Return a table for the shapes that can be cut out of a model of `config`.

    Args:
        config: The model before it is pruned.
        runtime: PyTorch fp32, or ONNX Runtime with the fp32 or the int8 graph of `export`.
        batch_size: Texts a batch, with one [MASK] each.
        length: Tokens a text.
        threads: Of the runtime.
        rounds: Each times all models in turn.
        calls: A model's runs in a round, after one that does not count.
        clock: Seconds; `time.process_time` where other programs share the cores and threads = 1.

    Raises:
        ConfigError: `length` is more than the model has positions, or the runtime is not installed.
    """
    if not 0 < length <= config.max_position_embeddings:
        raise ConfigError(
            f"target.length = {length}: the model takes 1 to {config.max_position_embeddings} "
            "tokens; name one of these"
        )
    facts = describe(config, runtime, batch_size=batch_size, length=length, threads=threads)
    shapes = list(family(config))
    with _threads(threads):
        runs = [build(shape, runtime, batch_size, length) for shape in shapes]
        milliseconds = time_in_turns(runs, rounds, calls, clock)
    parts = [parts_of(shape) for shape in shapes]
    cost = fit(parts, milliseconds)
    errors = [abs(cost.of(part) / ms - 1) for part, ms in zip(parts, milliseconds, strict=True)]
    log.info("latency by %d shapes, off by %.1f %% at most", len(shapes), 100 * max(errors))
    return LatencyTable(facts, cost, tuple(zip(parts, milliseconds, strict=True)))


def family(config: LertConfig) -> Iterator[LertConfig]:
    """Yield the shapes to time: few layers, whole and cut, so that each number can be told."""
    heads, neurons, pieces = config.num_attention_heads, _widest(config), config.vocab_size
    few, many = max(1, config.num_hidden_layers // 6), max(2, config.num_hidden_layers // 2)
    for layers, head_count, neuron_count, vocabulary in (
        (many, heads, neurons, pieces),
        (few, heads, neurons, pieces),
        (many, heads, max(1, neurons // 4), max(1, pieces // 4)),
        (many, max(1, heads // 4), neurons, max(1, pieces // 4)),
        (many, max(1, heads // 2), max(1, neurons // 2), max(1, pieces // 2)),
        (many, max(1, heads // 4), max(1, neurons // 4), pieces),
        (few, max(1, heads // 4), max(1, neurons // 4), max(1, pieces // 4)),
    ):
        yield LertConfig(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            layer_attention_heads=[head_count] * layers,
            intermediate_size=neuron_count,
            max_position_embeddings=config.max_position_embeddings,
            pad_token_id=0,
        )


def build(
    config: LertConfig, runtime: Runtime, batch_size: int, length: int
) -> Callable[[], object]:
    """Return a function that runs a batch through a model of `config` with random weights.

    Raises:
        ConfigError: the runtime is not installed.
    """
    model = LertForPreTraining(config).eval()
    ids = torch.arange(batch_size * length).view(batch_size, length) % config.vocab_size
    inputs: dict[str, Tensor] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "masked_positions": torch.arange(batch_size) * length + length // 2,
    }
    if runtime == "torch":

        def run() -> object:
            with torch.inference_mode():
                return model(**inputs)

        return run
    # Here, so that PyTorch is timed, and other targets are met, without what export needs.
    try:
        from lert_ds.edge.graph import Graph
        from prune.export import onnx_graph
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"runtime = {runtime}: {error.name} is not installed; say pip install "
            "'lert-ds[export]', or runtime=torch"
        ) from error
    program = onnx_graph.to_onnx(model, masked_positions=True)
    if runtime == "onnx_int8":
        program = onnx_graph.quantize(program)
    with tempfile.TemporaryDirectory() as folder:
        onnx_graph.save(program, Path(folder) / "model.onnx")
        graph = Graph(Path(folder) / "model.onnx", torch.get_num_threads())
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: graph.run(arrays)


def time_in_turns(
    runs: Sequence[Callable[[], object]], rounds: int, calls: int, clock: Callable[[], float]
) -> list[float]:
    """Return the milliseconds of each of `runs`: the median of the medians of `rounds` rounds."""
    medians: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, found in zip(runs, medians, strict=True):
            run()
            times = []
            for _ in range(calls):
                started = clock()
                run()
                times.append(clock() - started)
            found.append(1e3 * statistics.median(times))
    return [statistics.median(found) for found in medians]


def fit(parts: Sequence[Mapping[str, int]], milliseconds: Sequence[float]) -> LinearCost:
    """Return the numbers of 0 or more that come nearest in the sum of squared relative errors.

    Args:
        parts: What `prune.search.cost.parts_of` counts, of each shape.
        milliseconds: Of each shape, above 0.
    """
    names = list(parts[0])
    rows = np.array([[part[name] for name in names] for part in parts], np.float64)
    rows /= np.array(milliseconds)[:, None]
    scales = rows.max(0).clip(min=1e-300)
    best: tuple[float, npt.NDArray[np.float64]] = (np.inf, np.zeros(len(names)))
    # The best of all sets of numbers that are not 0: of five there are 31, so no iteration.
    for count in range(1, len(names) + 1):
        for chosen in map(list, itertools.combinations(range(len(names)), count)):
            solved, *_ = np.linalg.lstsq(rows[:, chosen] / scales[chosen], np.ones(len(rows)))
            error = float(((rows[:, chosen] / scales[chosen] @ solved - 1) ** 2).sum())
            if (solved >= 0).all() and error < best[0]:
                numbers = np.zeros(len(names))
                numbers[chosen] = solved / scales[chosen]
                best = error, numbers
    return LinearCost(KEY, **dict(zip(names, best[1].tolist(), strict=True)))


def _sizes(config: LertConfig) -> dict[str, int]:
    return {"hidden_size": config.hidden_size, "head_size": head_size_of(config)}


def _widest(config: LertConfig) -> int:
    return max(config.intermediate_size_of(n) for n in range(config.num_hidden_layers))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
