"""`lert-ds export`: a model folder to an edge folder, which ONNX Runtime runs without PyTorch.

    edge/
      onnx/model.onnx             fp32
      onnx/model_quantized.onnx   int8 weights, activations quantized as they come
      config.json                 of model type bert: the graph holds the shape, readers need a name
      vocab.txt tokenizer.json tokenizer_config.json
      report.json                 sizes, and how near each graph comes to PyTorch

The layout is that of transformers.js and optimum. Inputs of both graphs, int64 [batch, length]:
`input_ids`, `attention_mask` (1 at real tokens), `token_type_ids`; with masked_positions=true also
`masked_positions` [masked], indices into the flattened [batch * length], and the heads run on these
alone. Outputs: `logits` and, of a model with linguistic heads, `<task>_logits`.

The graphs come from `transformers.exporters`. What is written has been run and compared with
PyTorch on padded batches (`export_check.py`); beyond the tolerance nothing is written.
"""

import argparse
import dataclasses
import importlib.resources
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import onnx_ir
import onnxruntime
import torch
from pydantic import Field, model_validator
from torch import nn

from lert_ds import cli, config, model_dir, modeling_lert, tokenizer_files
from lert_ds.config import Config
from lert_ds.configuration_lert import LertConfig
from lert_ds.errors import ConfigError, ModelError
from lert_ds.files import refuse_finished, write_json, write_whole_folder
from lert_ds.model_source import CONFIG
from lert_ds.modeling_lert import LertForPreTraining
from prune import onnx_graph
from prune.export_check import Inputs, Outputs, Reference, make_batches, run_pytorch
from prune.texts import read_lines

FP32, INT8, REPORT = "onnx/model.onnx", "onnx/model_quantized.onnx", "report.json"
LARGEST_FILE_BYTES = 2**31 - 2**20
"""What protobuf, the format of .onnx, can hold; a little is left for the graph itself."""
_SAMPLE_TEXT = "samples/prose.txt"

log = logging.getLogger(__name__)

HeadName = Literal[
    "mlm", "encoder", "sequence_classification", "token_classification", "question_answering"
]


@dataclass(frozen=True)
class _Head:
    lert: type[nn.Module]
    bert: str
    """The class of transformers that readers of the edge folder know it by."""


HEADS: dict[HeadName, _Head] = {
    "mlm": _Head(LertForPreTraining, "BertForMaskedLM"),
    "encoder": _Head(modeling_lert.LertModel, "BertModel"),
    "sequence_classification": _Head(
        modeling_lert.LertForSequenceClassification, "BertForSequenceClassification"
    ),
    "token_classification": _Head(
        modeling_lert.LertForTokenClassification, "BertForTokenClassification"
    ),
    "question_answering": _Head(modeling_lert.LertForQuestionAnswering, "BertForQuestionAnswering"),
}


_TRAINED_FOR: dict[str, HeadName] = {
    **{head.lert.__name__: name for name, head in HEADS.items()},
    **{head.bert: name for name, head in HEADS.items()},
    modeling_lert.LertForMaskedLM.__name__: "mlm",
    "BertForPreTraining": "mlm",
}
"""Name of a class in config.json to its head."""
_VERSIONS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


class ExportConfig(Config):
    """Configuration of `lert-ds export`."""

    model: str
    """Model folder or hub name to export."""
    output: Path
    """Edge folder to write."""
    overwrite: bool = False
    """Replace an edge folder that is there."""
    head: Literal["auto"] | HeadName = "auto"
    """mlm, encoder, sequence_classification, token_classification or question_answering; auto: what
    the model folder was trained for."""
    tags: bool = True
    """mlm: also the linguistic heads, where the model has them."""
    masked_positions: bool = False
    """mlm: take the places of the [MASK]s as an input and compute logits for these alone: much
    faster where the vocabulary is large, but not the interface of transformers.js and optimum."""
    int8: bool = True
    """Write the int8 graph too."""
    reduce_range: bool = False
    """int8: weights of 7 bits, for x86 processors without VNNI, whose sums of 8 bits overflow."""
    fuse: bool = True
    """Use ONNX Runtime's own operators; false: standard ones alone, which other runtimes read."""
    # From 23 on PyTorch's attention becomes ONNX's, of which quantizing makes an invalid graph.
    opset: Annotated[int, Field(ge=17, le=22)] = 20
    """Version of ONNX's operators."""
    text: Path | None = None
    """Text to compare the graphs with PyTorch on, UTF-8; by default a sample of the package."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    """fp32: root mean square of a text's differences from PyTorch, over the outputs' deviation."""
    tolerance_int8: Annotated[float, Field(gt=0)] = 0.2
    """The same of int8."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.masked_positions and self.head not in ("auto", "mlm"):
            raise ValueError(f"masked_positions: a model for {self.head} fills no [MASK]")
        if self.reduce_range and not self.int8:
            raise ValueError("reduce_range is of int8 weights; say int8=true or leave it out")
        return self


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    cli.add_config_arguments(parser, ExportConfig, Path(__file__).parent / "configs")


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
            tolerance.
    """
    _refuse_output(settings)
    text = _read_text(settings)
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
    program = onnx_graph.to_onnx(
        model,
        masked_positions=settings.masked_positions,
        opset=settings.opset,
        fuse=settings.fuse,
    )
    graphs = {FP32: program}
    if settings.int8:
        graphs[INT8] = onnx_graph.quantize(program, reduce_range=settings.reduce_range)
    with write_whole_folder(settings.output) as folder:
        tokenizer_files.copy(source, folder, model.config.vocab_size)
        write_json(folder / CONFIG, _edge_config(model.config, head))
        files = {name: _write(graph, folder / name) for name, graph in graphs.items()}
        for name, facts in files.items():
            facts["outputs"] = _check(settings, head, reference, folder, name)
        report = {
            "model": settings.model,
            "head": head,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "weights_bytes": sum(path.stat().st_size for path in source.glob("*.safetensors")),
            "files": files,
            "compared": [list(batch["input_ids"].shape) for batch in reference.batches],
            "seconds": round(time.perf_counter() - started, 1),
            "config": config.dump(settings),
            "versions": {name: version(name) for name in _VERSIONS},
        }
        write_json(folder / REPORT, report)
    return report


def find_head(settings: ExportConfig) -> HeadName:
    """Return the head to export: the one asked for, or that which the model folder was trained for.

    Raises:
        ModelError: it cannot be read, or its config.json does not say.
        ConfigError: masked_positions was asked of a model that fills no [MASK].
    """
    folder = model_dir.resolve(settings.model)
    model_dir.read_config(folder)
    names = json.loads((folder / CONFIG).read_text("utf-8")).get("architectures") or []
    found = settings.head
    if found == "auto":
        if not names or names[0] not in _TRAINED_FOR:
            raise ModelError(
                f"{folder / CONFIG}: architectures is {names}, which names no head that is known "
                f"here; say head= one of {', '.join(HEADS)}"
            )
        found = _TRAINED_FOR[names[0]]
    if settings.masked_positions and found != "mlm":
        raise ConfigError(
            f"masked_positions: {settings.model} is a model for {found}, which fills no [MASK]; "
            "leave it out"
        )
    return found


def load_model(settings: ExportConfig, head: HeadName) -> Any:
    """Return the model to export, in fp32 and in evaluation mode, without what is not exported.

    Raises:
        ModelError: it cannot be read, or it has no weights for `head`.
    """
    model: Any
    model, loaded = model_dir.load(settings.model, HEADS[head].lert)
    random = set(loaded.random)
    if head == "encoder":
        model.pooler = None  # what stands above it is the last hidden state
    elif head == "mlm":
        # A head that has learnt nothing says nothing.
        learnt = {
            task: tags
            for task, tags in (model.config.tag_sets or {}).items()
            if settings.tags and f"cls.predictions.output_{task}.weight" not in random
        }
        model.set_tag_sets(learnt)
    present = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if missing := sorted(random & present):
        raise ModelError(
            f"{settings.model}: it has no weights for head = {head} ({missing[0]}); name a model "
            "that was trained for it, or another head"
        )
    return model.eval()


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """Return a session that runs the graph at `path` on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_graph(session: onnxruntime.InferenceSession, inputs: Inputs) -> Outputs:
    """Return the outputs of a graph by name; of `inputs` it gets those that it takes.

    A model without an attention head has no use for the mask, and its graph no such input.
    """
    names = [output.name for output in session.get_outputs()]
    given = {entry.name: inputs[entry.name].numpy() for entry in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def _check(
    settings: ExportConfig, head: HeadName, reference: Reference, folder: Path, name: str
) -> dict[str, Any]:
    """Return how near the written graph comes to PyTorch, by output.

    Raises:
        ModelError: not near enough.
    """
    session = open_graph(folder / name)
    found = reference.compare(lambda batch: run_graph(session, batch), classes=head != "encoder")
    key = "tolerance" if name == FP32 else "tolerance_int8"
    most = getattr(settings, key)
    for output, difference in found.items():
        if difference.ignores_mask:
            raise ModelError(
                f"{settings.model}: {name} ignores attention_mask, so padded texts come out wrong; "
                "nothing was written: try fuse=false"
            )
        # Not "greater than": what is not a number is no equal either.
        if not difference.relative <= most:
            raise ModelError(
                f"{settings.model}: {output} of {name} differs from PyTorch by "
                f"{difference.relative:.3g} of its deviation where {key} allows {most:g}; nothing "
                f"was written: try {'fuse=false' if name == FP32 else 'int8=false'}, or allow more"
            )
    return {output: dataclasses.asdict(difference) for output, difference in found.items()}


def _write(program: onnx_ir.Model, path: Path) -> dict[str, Any]:
    path.parent.mkdir(exist_ok=True)
    onnx_graph.save(program, path)
    return {"bytes": path.stat().st_size}


def _edge_config(shape: LertConfig, head: HeadName) -> dict[str, Any]:
    """Return config.json: what readers ask (labels, tag sets, positions) under a name they know."""
    tree: dict[str, Any] = shape.to_dict()
    tree.pop("auto_map", None)
    return {**tree, "model_type": "bert", "architectures": [HEADS[head].bert]}


def _read_text(settings: ExportConfig) -> str:
    if settings.text is not None:
        return "\n".join(read_lines((settings.text,), "text"))
    return (importlib.resources.files("lert_ds") / _SAMPLE_TEXT).read_text("utf-8")


def _refuse_output(settings: ExportConfig) -> None:
    folder = settings.output
    refuse_finished(folder, REPORT, settings.overwrite)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FP32).is_file():
        raise ConfigError(f"output = {folder}: it holds other files than an export's; name another")


def _refuse_size(settings: ExportConfig, head: HeadName) -> None:
    shape = model_dir.read_config(settings.model)
    needed = 4 * model_dir.count_parameters(shape, HEADS[head].lert)
    if needed > LARGEST_FILE_BYTES:
        raise ModelError(
            f"{settings.model}: {needed / 2**30:.1f} GiB of weights in fp32, "
            "an .onnx file holds 2; prune the model first"
        )


def _explain(settings: ExportConfig) -> list[str]:
    """Return the arithmetic of --dry-run."""
    head = find_head(settings)
    shape = model_dir.read_config(settings.model)
    parameters = model_dir.count_parameters(shape, HEADS[head].lert)
    lines = [f"{'head':<17} {head}", f"{'parameters':<17} {parameters:,}"]
    lines.append(f"{FP32:<29} about {4 * parameters / 2**20:,.1f} MiB")
    if settings.int8:
        own = parameters + (shape.vocab_size * shape.hidden_size if head == "mlm" else 0)
        lines.append(f"{INT8:<29} about {own / 2**20:,.1f} MiB")
    return lines


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield what the user is told of an export."""
    yield f"{'weights':<28} {report['weights_bytes'] / 2**20:8,.1f} MiB"
    for name, facts in report["files"].items():
        told = [
            f"{output} {found['relative']:.2g} of its deviation"
            + ("" if found["agreement"] is None else f", best class {found['agreement']:.1%}")
            for output, found in facts["outputs"].items()
        ]
        yield f"{name:<28} {facts['bytes'] / 2**20:8,.1f} MiB; from PyTorch: {'; '.join(told)}"
