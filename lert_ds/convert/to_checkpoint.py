"""Model folder to TensorFlow checkpoint: what the authors' own code reads.

    lert_model.ckpt.index  lert_model.ckpt.data-00000-of-00001
    lert_config.json       the keys that BertConfig of TensorFlow's BERT has
    vocab.txt

There is no `.meta`: it holds the graph of a program, which theirs makes anew, and reads no other.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lert_ds import tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.convert import tensorflow_checkpoint
from lert_ds.convert.mapping import Entry, Match, Names, match_parameters
from lert_ds.convert.source import count_pieces
from lert_ds.errors import ModelError
from lert_ds.files import sha256_of, write_json, write_whole_folder
from lert_ds.labels import LTP_TAGS
from lert_ds.model_source import CONFIG, find_weights, read_config, resolve
from lert_ds.model_weights import WeightFiles, files_of

NAME = "lert_model.ckpt"
CONFIGURATION = "lert_config.json"

_KEYS = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)
_EPSILON = 1e-12
"""Of every LayerNorm in TensorFlow's BERT (tf.contrib.layers.layer_norm)."""
_ACTIVATIONS = ("gelu", "relu", "tanh")
_WORDS, _DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
_BIAS, _DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"


class CheckpointPlan:
    """What of a model folder goes where; nothing is written yet."""

    def __init__(self, source: str) -> None:
        """Read a model folder, or download it from the hub, and account for its tensors.

        Raises:
            ModelError: it cannot be read, or TensorFlow's BERT cannot be of this shape, or its
                tokenizer has not as many pieces as the model embeds.
        """
        self.folder = resolve(source)
        self.config = _expressible(read_config(self.folder), self.folder)
        self.weights_file = find_weights(self.folder)
        self._weights = WeightFiles(self.folder, self.weights_file)
        self._stored = _usual_names(self._weights, self.folder)
        shapes = {name: self._weights.shapes[stored] for name, stored in self._stored.items()}
        heads = {name.split(".")[2] for name in shapes if name.startswith("cls.predictions.output")}
        tag_sets = self.config.tag_sets or {}
        self.config.tag_sets = {t: tags for t, tags in tag_sets.items() if f"output_{t}" in heads}
        names = Names(str(self.folder / self.weights_file), CONFIG)
        self.match: Match = match_parameters(shapes, self.config, names)
        self._pieces = tokenizer_files.pieces(tokenizer_files.load(self.folder))
        if len(self._pieces) != self.config.vocab_size:
            raise ModelError(
                f"{self.folder}: its tokenizer has {len(self._pieces)} pieces, the model embeds "
                f"{self.config.vocab_size}; TensorFlow's BERT takes a line of vocab.txt for each"
            )

    def write(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the checkpoint folder, whole or not at all.

        Raises:
            UserError: TensorFlow is not installed.
        """
        weights = files_of(self.folder, self.weights_file)
        hashes = {path.name: sha256_of(path) for path in (self.folder / CONFIG, *weights)}
        with write_whole_folder(folder) as temporary:
            entries = {entry.variable: entry for entry in self.match.entries}
            shapes = {variable: entry.shape for variable, entry in entries.items()}
            tensorflow_checkpoint.write(
                temporary / NAME, shapes, lambda variable: self._read(entries[variable])
            )
            write_json(temporary / CONFIGURATION, self.configuration())
            (temporary / tokenizer_files.VOCABULARY).write_bytes(self._vocabulary())
            write_json(temporary / "run.json", {**record, "files": hashes})

    def configuration(self) -> dict[str, Any]:
        """Return the content of lert_config.json.

        Tag sets stand there, for the way back, where they are not LTP's; the authors' code fixes
        28, 13 and 14 classes, and cannot train those heads.
        """
        tree: dict[str, Any] = {key: getattr(self.config, key) for key in _KEYS}
        tag_sets = self.config.tag_sets or {}
        if any(tuple(tags) != LTP_TAGS.get(task) for task, tags in tag_sets.items()):
            tree["tag_sets"] = tag_sets
        return tree

    def _vocabulary(self) -> bytes:
        """Return vocab.txt as it is in the folder, or as its tokenizer.json has it."""
        given = self.folder / tokenizer_files.VOCABULARY
        if given.is_file() and count_pieces(given) == len(self._pieces):
            return given.read_bytes()
        return "".join(f"{piece}\n" for piece in self._pieces).encode("utf-8")

    def _read(self, entry: Entry) -> NDArray[np.float32]:
        tensor = self._weights.read(self._stored[entry.parameter]).to(torch.float32)
        values: NDArray[np.float32] = (tensor.T if entry.transposed else tensor).numpy()
        return values


def _expressible(config: LertConfig, folder: Path) -> LertConfig:
    """Return `config` with one size for all layers.

    Raises:
        ModelError: TensorFlow's BERT, which has no key for it, would compute something else.
    """
    heads = config.layer_attention_heads or [config.num_attention_heads]
    neurons = config.layer_intermediate_sizes or [config.intermediate_size]
    wrong = {
        "layers of different sizes": len(set(neurons)) > 1 or 0 in neurons,
        "attention heads pruned": set(heads) != {config.num_attention_heads},
        f"layer_norm_eps = {config.layer_norm_eps}": config.layer_norm_eps != _EPSILON,
        f"hidden_act = {config.hidden_act}": config.hidden_act not in _ACTIVATIONS,
        "a decoder of its own": not config.tie_word_embeddings,
    }
    for what, is_so in wrong.items():
        if is_so:
            raise ModelError(
                f"{folder}: {what}, which TensorFlow's BERT cannot express; convert the model that "
                "it was made from"
            )
    config.intermediate_size, config.layer_intermediate_sizes = neurons[0], None
    config.layer_attention_heads = None
    return config


def _usual_names(weights: WeightFiles, folder: Path) -> dict[str, str]:
    """Return the names that `LertForPreTraining` has for the tensors, each to that in the file.

    transformers has written `gamma` and `beta`, encoders without their `bert.`, and the tied
    decoder and its bias besides.

    Raises:
        ModelError: the decoder is not tied, which TensorFlow's is.
    """
    alone = not any(name.startswith(("bert.", "cls.")) for name in weights.shapes)
    names: dict[str, str] = {}
    for stored in weights.shapes:
        name = stored.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        names[f"bert.{name}" if alone else name] = stored
    names.pop("bert.embeddings.position_ids", None)  # 0, 1, 2, …: no weight
    if _DECODER_BIAS in names:
        names.setdefault(_BIAS, names[_DECODER_BIAS])
    for copy, original in ((_DECODER, _WORDS), (_DECODER_BIAS, _BIAS)):
        if copy not in names:
            continue
        stored, other = names.pop(copy), names.get(original)
        if other is not None and not torch.equal(weights.read(stored), weights.read(other)):
            raise ModelError(
                f"{folder}: {copy} is not tied to {original}, as it is in TensorFlow's BERT; "
                "such a model cannot be converted"
            )
    return names
