"""`lert-ds export`: a model folder to an edge folder, which runs without PyTorch.

    edge/
      onnx/model.onnx             fp32
      onnx/model_quantized.onnx   int8 layers, activations quantized as they come; tables as bytes
      config.json                 of model type bert: the graph holds the shape, readers need a name
      vocab.txt tokenizer.json tokenizer_config.json
      report.json                 sizes, how near each graph comes to PyTorch, and accuracies

The layout is that of transformers.js and optimum; with format = openvino the graphs are
openvino/model.xml and openvino/model_quantized.xml, their weights beside them in .bin. Inputs of
both graphs, int64 [batch, length]:
`input_ids`, `attention_mask` (1 at real tokens), `token_type_ids`; with masked_positions=true also
`masked_positions` [masked], indices into the flattened [batch * length], and the heads run on these
alone. Outputs: `logits` and, of a model with linguistic heads, `<task>_logits`.

The graphs come from `transformers.exporters`. What is written has been run and compared with
PyTorch on padded batches (`check.py`) and, where asked, on texts whose answers are known
(`accuracy.py`); beyond the tolerance nothing is written.
"""

import argparse
import dataclasses
import logging
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lert_ds import cli, config, model_dir, tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.edge.folder import CONFIG, REPORT, GraphName
from lert_ds.errors import ConfigError, ModelError
from lert_ds.files import refuse_finished, write_json, write_whole_folder
from prune.export import accuracy as export_accuracy
from prune.export.check import Reference, Run, make_batches, run_pytorch
from prune.export.export_config import ExportConfig, Format, HeadName
from prune.export.graphs import FILES, open_graph, size_of, told_when_missing, write_graphs
from prune.export.questions import Question, make_questions
from prune.export.source import HEADS, find_head, load_model
from prune.vocabulary.texts import read_text

LARGEST_FILE_BYTES = 2**31 - 2**20
"""What protobuf, the format of .onnx, can hold; a little is left for the graph itself."""
_VERSIONS: dict[Format, tuple[str, ...]] = {
    "onnx": ("torch", "transformers", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("torch", "transformers", "openvino", "nncf"),
}

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    cli.add_config_arguments(parser, ExportConfig, Path(__file__).parents[1] / "configs")


def run(arguments: argparse.Namespace) -> None:
    """Export as configured, or say what that would write."""
    settings = cli.read_config(ExportConfig, arguments)
    if arguments.dry_run:
        cli.print_config(settings)
        print("\n".join(_explain(settings)))  # noqa: T201
        return
    report = export(settings)
    for line in _lines(report):
        log.info(line)


def export(settings: ExportConfig) -> dict[str, Any]:
    """Write the edge folder, whole or not at all, and return what its report.json says.

    Raises:
        UserError: the model or the output cannot be used, or a graph comes out beyond its
            tolerance or loses more of an accuracy than is allowed.
    """
    _refuse_output(settings)
    text = read_text(settings.text)
    started = time.perf_counter()
    source = model_dir.resolve(settings.model)
    head = find_head(settings)
    _refuse_size(settings, head)
    model = load_model(settings, head)
    reference = Reference(
        make_batches(
            tokenizer_files.load(source),
            text,
            model.config.max_position_embeddings,
            token_types=model.config.type_vocab_size,
            mask=head == "mlm",
            masked_positions=settings.masked_positions,
        ),
        lambda batch: run_pytorch(model, batch),
    )
    exam = _Exam.of(settings, head, model, source)
    with write_whole_folder(settings.output) as folder, told_when_missing(settings.format):
        write_tokenizer(source, folder, model.config.vocab_size)
        write_json(folder / CONFIG, _edge_config(model.config, head))
        files: dict[str, Any] = {}
        for name, file in write_graphs(model, settings, folder).items():
            graph = open_graph(folder, settings.format, name)
            files[file] = {"bytes": size_of(folder / file)}
            files[file]["outputs"] = _check(settings, head, reference, graph, name)
            files[file]["accuracy"] = exam.check(graph, file)
        report = {
            "model": settings.model,
            "head": head,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "weights_bytes": sum(path.stat().st_size for path in source.glob("*.safetensors")),
            "files": files,
            "compared": [list(batch["input_ids"].shape) for batch in reference.batches],
            "accuracy": exam.pytorch,
            "seconds": round(time.perf_counter() - started, 1),
            "config": config.dump(settings),
            "versions": {name: version(name) for name in _VERSIONS[settings.format]},
        }
        write_json(folder / REPORT, report)
    return report


def write_tokenizer(source: Path, folder: Path, vocabulary_size: int) -> None:
    """Write the tokenizer of a model folder so that tokenizer.json alone is all of it.

    transformers goes by tokenizer_config.json too, say for the case of letters; readers of an edge
    folder do not.

    Raises:
        ModelError: no tokenizer, or it has ids beyond `vocabulary_size`.
    """
    tokenizer_files.copy(source, folder, vocabulary_size)
    whole = tokenizer_files.load(source).backend_tokenizer
    whole.save(str(folder / tokenizer_files.TOKENIZER))


@dataclasses.dataclass(frozen=True)
class _Exam:
    """What every graph is asked, and what PyTorch answered; nothing where nothing is configured."""

    settings: ExportConfig
    questions: list[Question]
    pytorch: dict[str, float]

    @classmethod
    def of(cls, settings: ExportConfig, head: HeadName, model: Any, source: Path) -> "_Exam":
        questions = make_questions(
            settings.accuracy,
            head,
            model.config,
            source,
            masked_positions=settings.masked_positions,
        )
        answers = export_accuracy.measure(lambda batch: run_pytorch(model, batch), questions)
        return cls(settings, questions, answers)

    def check(self, graph: Run, file: str) -> dict[str, float]:
        """Return the accuracies of a graph, refused where they fall too far."""
        found = export_accuracy.measure(graph, self.questions)
        export_accuracy.refuse_drop(self.settings.accuracy, file, self.pytorch, found)
        return found


def _check(
    settings: ExportConfig, head: HeadName, reference: Reference, graph: Run, name: GraphName
) -> dict[str, Any]:
    """Return how near a written graph comes to PyTorch, by output.

    Raises:
        ModelError: not near enough.
    """
    file = FILES[settings.format][name]
    found = reference.compare(graph, classes=head != "encoder")
    key = "tolerance" if name == "fp32" else "tolerance_int8"
    most = getattr(settings, key)
    for output, difference in found.items():
        if difference.ignores_mask:
            raise ModelError(
                f"{settings.model}: {file} ignores attention_mask, so padded texts come out wrong; "
                "nothing was written: try fuse=false"
            )
        # Not "greater than": what is not a number is no equal either.
        if not difference.relative <= most:
            raise ModelError(
                f"{settings.model}: {output} of {file} differs from PyTorch by "
                f"{difference.relative:.3g} of its deviation where {key} allows {most:g}; nothing "
                f"was written: try {'fuse=false' if name == 'fp32' else 'int8=false'}, or allow "
                "more"
            )
    return {output: dataclasses.asdict(difference) for output, difference in found.items()}


def _edge_config(shape: LertConfig, head: HeadName) -> dict[str, Any]:
    """Return config.json: what readers ask (labels, tag sets, positions) under a name they know."""
    tree: dict[str, Any] = shape.to_dict()
    tree.pop("auto_map", None)
    return {**tree, "model_type": "bert", "architectures": [HEADS[head].bert]}


def _refuse_output(settings: ExportConfig) -> None:
    folder = settings.output
    refuse_finished(folder, REPORT, settings.overwrite)
    graphs = [folder / files["fp32"] for files in FILES.values()]
    if folder.is_dir() and any(folder.iterdir()) and not any(path.is_file() for path in graphs):
        raise ConfigError(f"output = {folder}: it holds other files than an export's; name another")


def _refuse_size(settings: ExportConfig, head: HeadName) -> None:
    shape = model_dir.read_config(settings.model)
    needed = 4 * model_dir.count_parameters(shape, HEADS[head].lert)
    if settings.format == "onnx" and needed > LARGEST_FILE_BYTES:
        raise ModelError(
            f"{settings.model}: {needed / 2**30:.1f} GiB of weights in fp32, "
            "an .onnx file holds 2; prune the model first"
        )


def _explain(settings: ExportConfig) -> list[str]:
    """Return the arithmetic of --dry-run."""
    head = find_head(settings)
    shape = model_dir.read_config(settings.model)
    parameters = model_dir.count_parameters(shape, HEADS[head].lert)
    files = FILES[settings.format]
    lines = [f"{'head':<17} {head}", f"{'parameters':<17} {parameters:,}"]
    lines.append(f"{files['fp32']:<29} about {4 * parameters / 2**20:,.1f} MiB")
    if settings.int8:
        # ONNX's int8 has the word embeddings twice where every position is scored: as a table, and
        # turned as the decoder's matrix.
        twice = head == "mlm" and settings.format == "onnx" and not settings.masked_positions
        own = parameters + (shape.vocab_size * shape.hidden_size if twice else 0)
        lines.append(f"{files['int8']:<29} about {own / 2**20:,.1f} MiB")
    return lines


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield what the user is told of an export."""
    yield f"{'weights':<29} {report['weights_bytes'] / 2**20:8,.1f} MiB"
    for name, facts in report["files"].items():
        told = [
            f"{output} {found['relative']:.2g} of its deviation"
            + ("" if found["agreement"] is None else f", best class {found['agreement']:.1%}")
            for output, found in facts["outputs"].items()
        ]
        yield f"{name:<29} {facts['bytes'] / 2**20:8,.1f} MiB; from PyTorch: {'; '.join(told)}"
    for name, accuracy in report["accuracy"].items():
        found = ", ".join(
            f"{facts['accuracy'][name]:.2%} {file}" for file, facts in report["files"].items()
        )
        yield f"{name:<29} {accuracy:8.2%} PyTorch, {found}"
