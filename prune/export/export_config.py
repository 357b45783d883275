"""The configuration of `lert-ds export`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lert_ds.config import Config, Paths

Format = Literal["onnx", "openvino"]
HeadName = Literal[
    "mlm", "encoder", "sequence_classification", "token_classification", "question_answering"
]
_OF_ONNX = ("reduce_range", "fuse", "opset")


class AccuracyConfig(Config):
    """What each graph must do as well as PyTorch; without corpus and examples nothing is asked."""

    corpus: Paths = ()
    """mlm: corpus folder(s); the share of masked words, and of tags there, that are right."""
    examples: Path | None = None
    """sequence_classification: JSON lines of {"text": …, "pair": … (or none), "label": …};
    token_classification: of {"tokens": […], "labels": […]}. A label is one of config.json's."""
    largest_drop: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Most that any accuracy may fall below PyTorch's: 0.01 is one of a hundred."""
    instances: Annotated[int, Field(ge=1)] = 256
    """Most instances of the corpus, or examples, that are looked at, from the first on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.corpus and self.examples is not None:
            raise ValueError("corpus is for mlm and examples for a fine-tuned task; name one")
        return self


class ExportConfig(Config):
    """Configuration of `lert-ds export`."""

    model: str
    """Model folder or hub name to export."""
    output: Path
    """Edge folder to write."""
    overwrite: bool = False
    """Replace an edge folder that is there."""
    format: Format = "onnx"
    """onnx: for ONNX Runtime, runs everywhere; openvino: for servers of Intel and AMD."""
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
    reduce_range: bool | None = None
    """onnx, int8: weights of 7 bits, for x86 processors without VNNI, whose sums of 8 bits
    overflow; by default where this machine's processor is one."""
    fuse: bool = True
    """onnx: use ONNX Runtime's own operators; false: standard ones alone, which other runtimes
    read."""
    # From 23 on PyTorch's attention becomes ONNX's, of which quantizing makes an invalid graph.
    opset: Annotated[int, Field(ge=17, le=22)] = 20
    """onnx: version of its operators."""
    text: Path | None = None
    """Text to compare the graphs with PyTorch on, UTF-8; by default a sample of the package."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    """fp32: root mean square of a text's differences from PyTorch, over the outputs' deviation."""
    tolerance_int8: Annotated[float, Field(gt=0)] = 0.2
    """The same of int8."""
    accuracy: AccuracyConfig = AccuracyConfig()
    """What each graph must do as well as PyTorch."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.masked_positions and self.head not in ("auto", "mlm"):
            raise ValueError(f"masked_positions: a model for {self.head} fills no [MASK]")
        if self.reduce_range and not self.int8:
            raise ValueError("reduce_range is of int8 weights; say int8=true or leave it out")
        if self.format != "onnx":
            for key in _OF_ONNX:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} is of format = onnx; leave it out")
        return self
