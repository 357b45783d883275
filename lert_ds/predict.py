"""`lert-ds predict FOLDER TEXT…`: fill [MASK], or tag words.

    $ lert-ds predict runs/quickstart/model '今天天[MASK]很好。' --top-k 3
    今天天气很好。
      [MASK] 1   气 91.3 %   氣 2.1 %   晴 1.4 %   pos n 98.0 %   ner O 99.9 %   dep SBV 71.2 %

    $ lert-ds predict runs/quickstart/model --tag '今天天气很好。'
    今天天气很好。
      今天   pos nt 98.0 %   ner O 99.9 %   dep ADV 71.2 %
      …

    $ lert-ds predict runs/quickstart/model --gold treebank.conllu        accuracy and macro-F1

A model folder runs on PyTorch; an edge folder on ONNX Runtime, and then PyTorch is not imported.
Every [MASK] is filled for itself, given all the others as [MASK]. To be tagged, each word of a
sentence is masked in its turn (`tagging.py`).
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lert_ds import predictions, split_words, tagged
from lert_ds.edge.folder import is_edge_folder
from lert_ds.errors import UserError
from lert_ds.predictions import Prediction
from lert_ds.tagging import Tagger, Words

if TYPE_CHECKING:
    from lert_ds.edge.edge_model import EdgeModel
    from lert_ds.modeling_lert import LertForPreTraining

BATCH_SIZE = 32
SENTENCES_AT_ONCE = 256
"""To tag: sorting more of them by length saves little more padding."""
PIECES_SHOWN, TAGS_SHOWN = 5, 1

logger = logging.getLogger(__name__)

Fill = Callable[[list[str], int], list[Prediction]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "model", metavar="FOLDER", help="a model folder, a name on the hub, or an edge folder"
    )
    parser.add_argument(
        "texts",
        metavar="TEXT",
        nargs="*",
        help="a text with one [MASK] or more, with --tag one without; - reads one text a line "
        "from standard input",
    )
    parser.add_argument(
        "--tag",
        action="store_true",
        help="tag every word, by the linguistic heads that the model has",
    )
    parser.add_argument(
        "--words",
        metavar="HOW",
        help=f"with --tag: what splits the text into words, {split_words.NAMES} (default: jieba)",
    )
    parser.add_argument(
        "--gold",
        type=Path,
        metavar="FILE",
        help="tag the words of annotated sentences, .conllu or .jsonl, and tell how many are right",
    )
    parser.add_argument(
        "--pos-column",
        choices=("xpos", "upos"),
        default="xpos",
        help="with --gold of CoNLL-U: the column of the part of speech (default: xpos)",
    )
    parser.add_argument(
        "--strip-subtypes",
        action="store_true",
        help="with --gold of CoNLL-U: nsubj:pass counts as nsubj",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        help=f"pieces to show for each [MASK] (default: {PIECES_SHOWN}), or tags for each word "
        f"(default: {TAGS_SHOWN})",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a text")
    parser.add_argument("--device", help="of a model folder: auto, cpu, cuda, cuda:1, …")
    parser.add_argument(
        "--graph",
        choices=("int8", "fp32"),
        help="of an edge folder; by default int8 where there is one",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the predictions for the texts of the command line, or for a file of sentences."""
    _check(arguments)
    if arguments.gold is not None:
        _evaluate(arguments)
        return
    lines = _tagged_lines(arguments) if arguments.tag else _filled_lines(arguments)
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what goes with nothing else that is asked."""
    tags = arguments.tag or arguments.gold is not None
    if arguments.gold is not None and arguments.texts:
        raise UserError(
            f"--gold {arguments.gold}: its sentences are tagged, and no other; leave the TEXT out"
        )
    if arguments.gold is None and not arguments.texts:
        raise UserError("TEXT: there is none; give one, or - for standard input")
    if arguments.words is not None and (arguments.gold is not None or not tags):
        reason = "only with --tag is a text split into words; say --tag too"
        if arguments.gold is not None:
            reason = f"{arguments.gold} has words of its own; leave --words out"
        raise UserError(f"--words {arguments.words}: {reason}")
    predictions.check_top_k(1 if arguments.top_k is None else arguments.top_k)


def _filled_lines(arguments: argparse.Namespace) -> Iterator[str]:
    fill = _edge_fill(arguments) if is_edge_folder(Path(arguments.model)) else _fill(arguments)
    texts = predictions.read_texts(arguments.texts)
    top_k = PIECES_SHOWN if arguments.top_k is None else arguments.top_k
    for start in range(0, len(texts), BATCH_SIZE):
        for prediction in fill(texts[start : start + BATCH_SIZE], top_k):
            yield predictions.show(prediction, as_json=arguments.json)


def _tagged_lines(arguments: argparse.Namespace) -> Iterator[str]:
    tagger = _tagger(arguments)
    split = split_words.make_splitter(arguments.words or "jieba")
    texts = predictions.read_texts(arguments.texts)
    top_k = TAGS_SHOWN if arguments.top_k is None else arguments.top_k
    for start in range(0, len(texts), SENTENCES_AT_ONCE):
        for sentence in tagger.tag(split(texts[start : start + SENTENCES_AT_ONCE]), top_k):
            yield tagged.show(sentence, as_json=arguments.json)


def _evaluate(arguments: argparse.Namespace) -> None:
    from lert_ds import tag_evaluation

    gold = tag_evaluation.read_gold(arguments.gold, arguments.pos_column, arguments.strip_subtypes)
    tagger = _tagger(arguments)
    tag_evaluation.refuse_other_tags(arguments.gold, gold, tagger.tag_sets)
    evaluation = tag_evaluation.TagEvaluation(tagger.tag_sets)
    for start in range(0, len(gold), SENTENCES_AT_ONCE):
        part = gold[start : start + SENTENCES_AT_ONCE]
        for sentence, found in zip(
            part, tagger.tag([Words(own.text, own.words) for own in part]), strict=True
        ):
            evaluation.add(sentence, found)
        logger.info("tagged: %s of %s sentences", f"{start + len(part):,}", f"{len(gold):,}")
    sys.stdout.write(f"{evaluation.show(as_json=arguments.json)}\n")


def _tagger(arguments: argparse.Namespace) -> Tagger:
    if is_edge_folder(Path(arguments.model)):
        return _edge_model(arguments).tagger()
    from lert_ds import tag_words

    model, tokenizer = _loaded(arguments)
    return tag_words.make_tagger(model, tokenizer, arguments.model)


def _edge_fill(arguments: argparse.Namespace) -> Fill:
    return _edge_model(arguments).fill


def _fill(arguments: argparse.Namespace) -> Fill:
    from lert_ds import fill_mask

    model, tokenizer = _loaded(arguments)
    return lambda texts, top_k: fill_mask.fill(model, tokenizer, texts, top_k)


def _edge_model(arguments: argparse.Namespace) -> "EdgeModel":
    if arguments.device not in (None, "auto", "cpu"):
        raise UserError(
            f"--device {arguments.device}: {arguments.model} is an edge folder, which runs on the "
            "CPU; leave --device out"
        )
    try:
        from lert_ds.edge.edge_model import EdgeModel
    except ModuleNotFoundError as error:
        if error.name not in ("onnxruntime", "tokenizers"):
            raise
        raise UserError(
            f"{arguments.model}: an edge folder runs on {error.name}, which is not installed; "
            "say pip install 'lert-ds[export]'"
        ) from error
    return EdgeModel(arguments.model, arguments.graph)


def _loaded(arguments: argparse.Namespace) -> tuple["LertForPreTraining", Any]:
    if arguments.graph is not None:
        raise UserError(
            f"--graph {arguments.graph}: {arguments.model} is no edge folder; leave --graph out"
        )
    from lert_ds import fill_mask

    device = fill_mask.find_device(arguments.device or "auto")
    model, tokenizer = fill_mask.load(arguments.model)
    model.to(device)
    return model, tokenizer
