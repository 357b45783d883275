"""The columns of a benchmark: model folders and the graphs of edge folders, looked at, not yet run.

models = ["runs/a/model", "runs/edge"]  →  a (PyTorch)   edge fp32   edge int8 (ONNX Runtime)
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lert_ds import model_dir, tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.edge.edge_model import GRAPHS, EdgeModel, GraphName
from lert_ds.edge.folder import is_edge_folder
from lert_ds.errors import ConfigError, ModelError
from lert_ds.model_source import CONFIG, find_weights
from prune.benchmark.heads import MLM, SCORES, head_of
from prune.export.export_config import HeadName
from prune.export.source import HEADS

_REPORT = "report.json"
_MODEL = "model"
"""How training commands call the model folder in theirs: it tells no model from another."""


@dataclass(frozen=True)
class Column:
    """One model, and how it is run."""

    name: str
    source: str
    """As the user named it."""
    folder: Path
    graph: GraphName | None
    """Of an edge folder; None runs in PyTorch."""
    precision: str
    """What PyTorch computes in; the graph's name for a graph."""
    config: LertConfig
    """The shape; the linguistic heads are those that are run."""
    parameters: int | None
    """As trained, tied ones once; None where an edge folder does not say."""
    bytes: int
    """Of what is shipped: the weights, or the graph with its weights."""
    masked_positions: bool
    """Whether scores are computed at the masked positions alone."""
    head: HeadName = MLM
    """What it computes."""

    @property
    def runtime(self) -> str:
        """What computes, and in what."""
        return f"{'PyTorch' if self.graph is None else 'ONNX Runtime'}, {self.precision}"

    @property
    def positions(self) -> int:
        """Most tokens of a text."""
        return int(self.config.max_position_embeddings)

    @property
    def scores(self) -> str:
        """Where scores are computed, or what of."""
        if self.head == MLM:
            return "at the [MASK]s" if self.masked_positions else "everywhere"
        return SCORES[self.head]

    @property
    def command(self) -> list[str]:
        """Arguments of Python that start the worker of this column."""
        wish = {
            "folder": str(self.folder), "graph": self.graph, "precision": self.precision,
            "head": self.head,
        }  # fmt: skip
        return ["-m", "prune.benchmark.worker", json.dumps(wish)]


def find_columns(models: Sequence[str], names: Sequence[str], precision: str) -> list[Column]:
    """Return the columns of model and edge folders, in their order.

    Args:
        models: Model folders, hub names, edge folders; these have a column for each graph.
        names: One for each of `models`; none for the ends of their paths.
        precision: What PyTorch computes in, `fp32` or `bf16`.

    Raises:
        ConfigError: no model, or names that do not fit or are not unique.
        ModelError: a folder that is neither, or one that cannot be used.
    """
    if not models:
        raise ConfigError("models = []: name model folders and edge folders to compare")
    columns = []
    for source, name in zip(models, _names(models, names), strict=True):
        folder = model_dir.resolve(source)
        if is_edge_folder(folder):
            columns += _of_edge(source, folder, name)
        else:
            columns.append(_of_model(source, folder, name, precision))
    known = [column.name for column in columns]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise ConfigError(f"names: two columns are called {twice[0]}; give each another name")
    return columns


def _of_edge(source: str, folder: Path, name: str) -> list[Column]:
    graphs: list[GraphName] = [graph for graph in GRAPHS if (folder / GRAPHS[graph]).is_file()]
    if not graphs:
        raise ModelError(
            f"{source}: an edge folder without a graph (neither {' nor '.join(GRAPHS.values())}); "
            "export the model again"
        )
    config = model_dir.read_config(folder)
    columns = []
    for graph in graphs:
        model = EdgeModel(folder, graph=graph, threads=1)  # it holds config.json to the graph
        head = head_of(model.config["architectures"])
        if head == "encoder":
            raise ModelError(
                f"{source}: its graph is a {model.config['architectures'][0]}, which scores "
                "nothing; name the edge folder of a masked language model or a fine-tuned one"
            )
        path = folder / GRAPHS[graph]
        columns.append(
            Column(
                name=f"{name} {graph}",
                source=source,
                folder=folder,
                graph=graph,
                precision=graph,
                config=config,
                parameters=_parameters_of(folder),
                # A graph beyond what protobuf holds keeps its weights in files beside it.
                bytes=sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")),
                masked_positions="masked_positions" in model.inputs,
                head=head,
            )
        )
    _check_tokenizer(source, folder, config)
    return columns


def _of_model(source: str, folder: Path, name: str, precision: str) -> Column:
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"{source}: neither a model folder ({CONFIG} and weights) nor an edge folder "
            f"({GRAPHS['fp32']}); name one of these"
        )
    config = model_dir.read_config(folder)
    weights = folder / find_weights(folder)
    _check_tokenizer(source, folder, config)
    head = head_of(_architectures(folder))
    head = MLM if head == "encoder" else head  # an encoder's folder may hold an MLM head too
    return Column(
        name=name,
        source=source,
        folder=folder,
        graph=None,
        precision=precision,
        config=config,
        parameters=_count(config, head),
        bytes=sum((folder / part).stat().st_size for part in _parts(weights)),
        masked_positions=head == MLM,
        head=head,
    )


def _architectures(folder: Path) -> list[str]:
    found = json.loads((folder / CONFIG).read_text("utf-8")).get("architectures")
    return found if isinstance(found, list) else []


def _count(config: LertConfig, head: HeadName) -> int:
    if head == MLM:
        return model_dir.count_parameters(config)
    return model_dir.count_parameters(config, HEADS[head].lert)


def _parts(weights: Path) -> set[str]:
    """Return the names of the files that hold the weights."""
    if weights.suffix != ".json":
        return {weights.name}
    tree: dict[str, Any] = json.loads(weights.read_text("utf-8"))
    return set(tree["weight_map"].values())


def _check_tokenizer(source: str, folder: Path, config: LertConfig) -> None:
    pieces = len(tokenizer_files.load(folder))
    if pieces > config.vocab_size:
        raise ModelError(
            f"{source}: its tokenizer has {pieces} pieces, {CONFIG} says vocab_size = "
            f"{config.vocab_size}; they are not of one model"
        )


def _parameters_of(folder: Path) -> int | None:
    """Return what the report of an export says; folders of other makers have none."""
    path = folder / _REPORT
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8")).get("parameters")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ModelError(f"{path}: not a report ({error}); export the model again") from error
    return found if isinstance(found, int) else None


def _names(models: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return a name for each of `models`: those given, or the shortest ends that tell all apart."""
    if names:
        if len(names) != len(models):
            raise ConfigError(
                f"names has {len(names)} for {len(models)} models; give each one, or none"
            )
        shown = [" ".join(name.split()) for name in names]
        if not all(shown):
            raise ConfigError("names: one of them is empty; give each model a name")
        if len(set(shown)) < len(shown):
            twice = next(name for name in shown if shown.count(name) > 1)
            raise ConfigError(f"names: {twice} is there twice; give each model another")
        return shown
    parts = [_telling_parts(source) for source in models]
    for depth in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(own[-depth:]) for own in parts]
        if len(set(ends)) == len(ends):
            return ends
    twice = next(source for place, source in enumerate(models) if parts[place] in parts[:place])
    raise ConfigError(f"models: {twice} is there twice; name it once, or give each a name in names")


def _telling_parts(source: str) -> tuple[str, ...]:
    parts = Path(source).parts or (source,)
    return parts[:-1] if len(parts) > 1 and parts[-1] == _MODEL else parts
