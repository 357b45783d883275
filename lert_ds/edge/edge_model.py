"""Run an edge folder, what `lert-ds export` writes, with ONNX Runtime: no PyTorch is needed.

    model = EdgeModel("runs/edge", threads=1)
    model.run({"input_ids": ids, "attention_mask": real, "token_type_ids": types})["logits"]
    model.fill(["今天天[MASK]很好。"], top_k=3)
    model.tagger().tag([Words("今天天气很好。", ["今天", "天气", "很", "好", "。"])])

This module needs numpy, onnxruntime and tokenizers, and of this package what needs no more, so that
these three are enough on a device. It reads the folders of transformers.js and optimum too.
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from lert_ds import predictions
from lert_ds.edge.edge_config import MASKED_LM, check_config, read_config
from lert_ds.edge.folder import CONFIG, GRAPHS, GraphName
from lert_ds.edge.graph import Arrays, Graph
from lert_ds.errors import ModelError
from lert_ds.predictions import Candidate, Prediction, SpecialTokens
from lert_ds.tagging import Encoded, MaskedCopies, Scores, SpecialIds, Tagger

__all__ = ["GRAPHS", "Arrays", "EdgeModel", "GraphName"]

_TOKENIZER, _TOKENIZER_SETTINGS = "tokenizer.json", "tokenizer_config.json"
_TOKENS_PER_BATCH = 1024
"""Of tagging. A graph that scores every position makes 85 KB of logits a token; and from about
this many on, a larger batch is no faster on a CPU."""


class EdgeModel:
    """A graph of an edge folder, on the CPU.

    Attributes:
        folder: Where it comes from.
        graph: `int8` or `fp32`.
        config: Content of config.json.
        inputs: Names of what the graph takes, int64: `input_ids`, `attention_mask` and
            `token_type_ids` [batch, length]; where it scores chosen positions alone also
            `masked_positions` [masked], indices into the flattened [batch * length]. A model
            without an attention head takes no mask.
        outputs: Names of what it gives.
    """

    def __init__(
        self, folder: str | Path, graph: GraphName | None = None, threads: int | None = None
    ) -> None:
        """Open a graph and hold config.json to it.

        Args:
            folder: An edge folder.
            graph: None takes int8 where there is one, else fp32.
            threads: That an operator may use; None for as many as there are cores.

        Raises:
            ModelError: there is no such graph, it cannot be read, or config.json is of another.
        """
        self.folder = Path(folder)
        self.graph = _find_graph(self.folder, graph)
        path = self.folder / GRAPHS[self.graph]
        self.config = read_config(self.folder)
        self._graph = Graph(path, threads)
        self.inputs = self._graph.inputs
        self.outputs = tuple(self._graph.outputs)
        check_config(self.folder / CONFIG, self.config, path.name, self._graph.outputs)

    @property
    def fills_masks(self) -> bool:
        """Whether the graph is a masked language model's."""
        return bool(self.config["architectures"][0] == MASKED_LM)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose linguistic heads the graph has, in its order."""
        named = (output.removesuffix("_logits") for output in self.outputs)
        return tuple(task for task in named if task in (self.config.get("tag_sets") or {}))

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Return the outputs of the graph by name.

        Args:
            inputs: At least those of `self.inputs`; the others are not read.

        Raises:
            ModelError: the graph cannot compute them, say for more positions than it has.
        """
        return self._graph.run(inputs)

    def fill(self, texts: Sequence[str], top_k: int = 5) -> list[Prediction]:
        """Return the predictions for each of `texts`, which go through the graph as one batch.

        Raises:
            UserError: the graph fills no [MASK], the tokenizer is not its own, a text has no [MASK]
                or is longer than the model's positions, or `top_k` is below 1.
        """
        predictions.check_top_k(top_k)
        tokenizer, special = self._tokenizer
        positions = self.config["max_position_embeddings"]
        encoded = [
            predictions.encode(text, lambda text: tokenizer.encode(text).ids, special, positions)
            for text in texts
        ]
        batch = self._batch(encoded)
        places = np.flatnonzero(batch["input_ids"] == tokenizer.token_to_id(special.mask))
        outputs = self._run_at(batch, places)
        # Rows of the embedding beyond the vocabulary, kept for a round size, name no piece.
        scores = outputs["logits"][:, : tokenizer.get_vocab_size()]
        pieces = _best(scores, top_k, tokenizer.id_to_token)
        tag_sets = self.config.get("tag_sets") or {}
        tags = {
            task: _best(outputs[f"{task}_logits"], 1, tag_sets[task].__getitem__)
            for task in self.tasks
        }
        return predictions.by_text(texts, pieces, tags, special.mask)

    def tagger(self) -> Tagger:
        """Return what tags the words of sentences, each masked in a copy of its own.

        An int8 graph quantizes its activations over a batch, so that what it says of a sentence
        depends a little on the others.

        Raises:
            ModelError: the graph has no linguistic heads, or the tokenizer is not its own.
        """
        tokenizer, special = self._tokenizer
        if not self.tasks:
            raise ModelError(
                f"{self.folder}: its graph has no linguistic heads to tag words with; export a "
                "model that has them, or leave --tag out and put a [MASK] into the text"
            )

        def encode(text: str) -> Encoded:
            encoding = tokenizer.encode(text, add_special_tokens=False)
            return Encoded(encoding.ids, encoding.offsets)

        tag_sets = self.config["tag_sets"]
        return Tagger(
            encode=encode,
            score=lambda copies: self._score(copies, tokenizer.get_vocab_size()),
            name_of=tokenizer.id_to_token,
            special=special,
            special_ids=SpecialIds(*(tokenizer.token_to_id(token) for token in special)),
            positions=self.config["max_position_embeddings"],
            tag_sets={task: tag_sets[task] for task in self.tasks},
            tokens_per_batch=_TOKENS_PER_BATCH,
        )

    def _score(self, copies: MaskedCopies, pieces: int) -> Scores:
        outputs = self._run_at(self._batch(copies.ids), copies.places)
        true_pieces = _softmax(outputs["logits"][:, :pieces])
        return Scores(
            true_pieces[np.arange(len(copies.truth)), copies.truth],
            {task: _softmax(outputs[f"{task}_logits"]) for task in self.tasks},
        )

    def _run_at(
        self, batch: dict[str, NDArray[np.int64]], places: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the outputs [places, classes] at places of the flattened [batch * length]."""
        outputs = self.run({**batch, "masked_positions": places})
        if "masked_positions" in self.inputs:
            return outputs
        return {
            name: logits.reshape(-1, logits.shape[-1])[places] for name, logits in outputs.items()
        }

    def _batch(self, encoded: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
        longest = max(map(len, encoded), default=0)
        ids = np.full((len(encoded), longest), self.config.get("pad_token_id") or 0, np.int64)
        real = np.zeros_like(ids)
        for row, own in enumerate(encoded):
            ids[row, : len(own)] = own
            real[row, : len(own)] = 1
        return {"input_ids": ids, "attention_mask": real, "token_type_ids": np.zeros_like(ids)}

    @cached_property
    def _tokenizer(self) -> tuple[Any, SpecialTokens]:
        """The tokenizer, read when it is first asked for: running ids needs none."""
        if not self.fills_masks:
            raise ModelError(
                f"{self.folder}: its graph is a {self.config['architectures'][0]}, which fills no "
                "[MASK]; name the edge folder of a masked language model"
            )
        path = self.folder / _TOKENIZER
        if not path.is_file():
            raise ModelError(f"{self.folder}: no {_TOKENIZER}; export the model again")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelError(f"{path}: it cannot be read ({error}); copy it again") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        special = _special_tokens(self.folder / _TOKENIZER_SETTINGS)
        for token in special:
            if tokenizer.token_to_id(token) is None:
                raise ModelError(f"{path}: there is no {token} in it; export the model again")
        if (pieces := tokenizer.get_vocab_size()) > self.config["vocab_size"]:
            raise ModelError(
                f"{self.folder}: its tokenizer has {pieces} pieces, its graph scores "
                f"{self.config['vocab_size']}; they are not of one model"
            )
        return tokenizer, special


def _find_graph(folder: Path, graph: GraphName | None) -> GraphName:
    there: list[GraphName] = [name for name in GRAPHS if (folder / GRAPHS[name]).is_file()]
    if graph is None and there:
        return "int8" if "int8" in there else there[0]
    if graph is None:
        raise ModelError(
            f"{folder}: no graph for ONNX Runtime in it (neither {' nor '.join(GRAPHS.values())}); "
            "name a folder that `lert-ds export` wrote with format = onnx"
        )
    if graph not in there:
        others = f"say --graph {there[0]}" if there else "export the model again"
        raise ModelError(f"{folder}: it has no {graph} graph ({GRAPHS[graph]}); {others}")
    return graph


def _special_tokens(settings: Path) -> SpecialTokens:
    if not settings.is_file():
        return SpecialTokens()
    try:
        tree = json.loads(settings.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{settings}: not JSON ({error}); export the model again") from error
    named = {}
    for field in SpecialTokens._fields:
        token = tree.get(f"{field}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            named[field] = str(token)
    return SpecialTokens(**named)


def _best(
    logits: NDArray[np.float32], count: int, name_of: Callable[[int], str]
) -> list[list[Candidate]]:
    """Return the `count` most probable classes of each row of `logits`, [rows, classes]."""
    shares = _softmax(logits)
    count = min(count, logits.shape[-1])
    places = np.argpartition(-shares, count - 1, axis=-1)[:, :count]
    places = np.take_along_axis(
        places, np.argsort(-np.take_along_axis(shares, places, -1), axis=-1, kind="stable"), -1
    )
    best = np.take_along_axis(shares, places, -1)
    return [
        [Candidate(name_of(place), share) for place, share in zip(row, own, strict=True)]
        for row, own in zip(places.tolist(), best.tolist(), strict=True)
    ]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    shares: NDArray[np.float32] = exponentials / exponentials.sum(-1, keepdims=True)
    return shares
