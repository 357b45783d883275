"""`lert-ds predict MODEL TEXT…`: fill [MASK], and tag the words that stand there.

    $ lert-ds predict runs/quickstart/model '今天天[MASK]很好。' --top-k 3
    今天天气很好。
      [MASK] 1   气 91.3 %   氣 2.1 %   晴 1.4 %   pos n 98.0 %   ner O 99.9 %   dep SBV 71.2 %

Every [MASK] is filled for itself, given all the others as [MASK].
"""

import argparse
import dataclasses
import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lert_ds import model_dir, tokenizer_files
from lert_ds.errors import ModelError, UserError
from lert_ds.modeling_lert import LertForPreTraining

BATCH_SIZE = 32


@dataclass(frozen=True)
class Candidate:
    """A piece or a tag, and how probable it is."""

    name: str
    probability: float


@dataclass(frozen=True)
class MaskPrediction:
    """What the model says of one [MASK]."""

    pieces: list[Candidate]
    """Word pieces, the most probable first."""
    tags: dict[str, Candidate]
    """Task to the most probable tag."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text."""

    text: str
    filled: str
    """The text with the most probable piece in the place of each [MASK]."""
    masks: list[MaskPrediction]
    """One for each [MASK], in order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("model", metavar="MODEL", help="a model folder, or a name on the hub")
    parser.add_argument(
        "texts",
        metavar="TEXT",
        nargs="+",
        help="a text with one [MASK] or more; - reads one text a line from standard input",
    )
    parser.add_argument("--top-k", type=int, default=5, help="pieces to show for each [MASK]")
    parser.add_argument("--json", action="store_true", help="print one JSON object a text")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")


def run(arguments: argparse.Namespace) -> None:
    """Print the predictions for the texts of the command line."""
    device = _device(arguments.device)
    model, tokenizer = load(arguments.model)
    model.to(device)
    texts = [text for given in arguments.texts for text in (_lines() if given == "-" else [given])]
    if not texts:
        raise UserError("standard input: there is no text in it; give one text a line")
    for start in range(0, len(texts), BATCH_SIZE):
        predictions = fill(model, tokenizer, texts[start : start + BATCH_SIZE], arguments.top_k)
        for prediction in predictions:
            if arguments.json:
                shown = json.dumps(dataclasses.asdict(prediction), ensure_ascii=False)
            else:
                shown = "\n".join(_table(prediction))
            sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()


def load(source: str) -> tuple[LertForPreTraining, Any]:
    """Return a model for `fill`, with the linguistic heads that it has learnt, and its tokenizer.

    Raises:
        ModelError: it cannot be read, or it has no MLM head.
    """
    model, report = model_dir.load(source, LertForPreTraining)
    if "cls.predictions.transform.dense.weight" in report.random:
        raise ModelError(
            f"{source}: it has no MLM head to fill [MASK] with; name a pre-trained model, "
            "not one that is fine-tuned for a task"
        )
    tag_sets = model.config.tag_sets or {}
    learnt = {
        task: tags
        for task, tags in tag_sets.items()
        if f"cls.predictions.output_{task}.weight" not in report.random
    }
    model.set_tag_sets(learnt)
    tokenizer = tokenizer_files.load(report.folder)
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"{source}: its tokenizer has {len(tokenizer)} pieces, its model embeds "
            f"{model.config.vocab_size}; they are not of one model"
        )
    return model.eval(), tokenizer


@torch.inference_mode()
def fill(
    model: LertForPreTraining, tokenizer: Any, texts: Sequence[str], top_k: int = 5
) -> list[Prediction]:
    """Return the predictions for each of `texts`, which go through the model as one batch.

    Raises:
        UserError: a text without [MASK] or longer than the model's positions, or `top_k` below 1.
    """
    if top_k < 1:
        raise UserError(f"--top-k {top_k}: at least 1")
    encoded = [_encode(tokenizer, text, model.config.max_position_embeddings) for text in texts]
    input_ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(ids) for ids in encoded],
        batch_first=True,
        padding_value=tokenizer.pad_token_id,
    )
    lengths = torch.tensor([len(ids) for ids in encoded])
    real = torch.arange(input_ids.shape[1]) < lengths[:, None]
    masked_positions = (input_ids == tokenizer.mask_token_id).flatten().nonzero()[:, 0]
    output = model(
        input_ids.to(model.device),
        attention_mask=None if bool(real.all()) else real.to(model.device),
        masked_positions=masked_positions.to(model.device),
    )
    assert output.logits is not None
    assert output.tag_logits is not None
    # Rows of the embedding beyond the vocabulary, kept for a round size, name no piece.
    pieces = _best(output.logits[:, : len(tokenizer)], top_k, tokenizer.convert_ids_to_tokens)
    tag_sets = model.config.tag_sets or {}
    tags = {
        task: _best(logits, 1, tag_sets[task].__getitem__)
        for task, logits in output.tag_logits.items()
    }
    masks = [
        MaskPrediction(row, {task: best[number][0] for task, best in tags.items()})
        for number, row in enumerate(pieces)
    ]
    return list(_by_text(texts, masks, tokenizer.mask_token))


def _by_text(
    texts: Sequence[str], masks: Sequence[MaskPrediction], mask_token: str
) -> Iterator[Prediction]:
    start = 0
    for text in texts:
        first, *rest = text.split(mask_token)
        own = list(masks[start : start + len(rest)])
        start += len(rest)
        filled = first + "".join(
            mask.pieces[0].name.removeprefix("##") + part
            for mask, part in zip(own, rest, strict=True)
        )
        yield Prediction(text, filled, own)
    assert start == len(masks), (start, len(masks))


def _encode(tokenizer: Any, text: str, positions: int) -> list[int]:
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    if tokenizer.mask_token not in text:
        raise UserError(
            f"{shown!r}: there is no {tokenizer.mask_token} in it; put one where a piece is to be "
            "filled in, one for each Chinese character"
        )
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) > positions:
        raise UserError(
            f"{shown!r}: {len(ids)} tokens with {tokenizer.cls_token} and {tokenizer.sep_token}, "
            f"the model takes {positions}; shorten the text"
        )
    return ids


def _best(logits: Tensor, count: int, name_of: Callable[[int], str]) -> list[list[Candidate]]:
    """Return the `count` most probable classes of each row of `logits`, [rows, classes]."""
    top = logits.float().softmax(-1).topk(min(count, logits.shape[-1]))
    return [
        [Candidate(name_of(place), share) for place, share in zip(places, shares, strict=True)]
        for places, shares in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _table(prediction: Prediction) -> Iterator[str]:
    yield prediction.filled
    rows = [
        [_show(candidate) for candidate in mask.pieces]
        + [f"{task} {_show(tag)}" for task, tag in mask.tags.items()]
        for mask in prediction.masks
    ]
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    digits = len(str(len(rows)))
    for number, row in enumerate(rows, 1):
        cells = [
            cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)
        ]
        yield f"  [MASK] {number:<{digits}}   {'   '.join(cells)}".rstrip()


def _show(candidate: Candidate) -> str:
    return f"{candidate.name} {100 * candidate.probability:.1f} %"


def _width(text: str) -> int:
    """Return the columns of a terminal that `text` takes: two for a Han character."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def _lines() -> list[str]:
    """Return the lines of standard input that are not blank."""
    try:
        content = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input: not UTF-8 at byte {error.start}; convert it, with iconv say"
        ) from error
    return [line.rstrip("\r") for line in content.split("\n") if line.strip()]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not on this machine ({reason}); say auto") from error
    return device
