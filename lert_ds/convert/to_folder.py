"""TensorFlow checkpoint to model folder: every weight moved, or named as left out.

The weights are read one by one into the state dict of a model that has no memory of its own, and
written from there: one copy of the model, LERT-large 1.3 GB.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lert_ds import model_dir, tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.convert.mapping import MLM, POOLER, Match, Names, match_variables, tasks_of
from lert_ds.convert.source import CheckpointFiles, count_pieces
from lert_ds.convert.tensorflow_checkpoint import Checkpoint
from lert_ds.errors import ModelError
from lert_ds.files import sha256_of
from lert_ds.labels import LTP_TAGS
from lert_ds.model_source import read_config_file
from lert_ds.modeling_lert import LertForPreTraining, LertModel

log = logging.getLogger(__name__)

_PREFIX = "bert."


class FolderPlan:
    """What of a checkpoint goes where; nothing is read or written yet but names and shapes."""

    def __init__(self, files: CheckpointFiles) -> None:
        """Open a checkpoint and account for its variables.

        Raises:
            ModelError: it, its configuration or its vocabulary cannot be used, or they are not of
                one model.
            UserError: TensorFlow is not installed.
        """
        self.files = files
        given = read_config_file(files.configuration)
        self.checkpoint = Checkpoint(files.prefix)
        self.config = _with_heads(given, tasks_of(self.checkpoint.shapes), files)
        names = Names(files.prefix.name, files.configuration.name)
        self.match: Match = match_variables(self.checkpoint.shapes, self.config, names)
        pieces = count_pieces(files.vocabulary)
        if pieces != self.config.vocab_size:
            raise ModelError(
                f"{files.vocabulary.name}: {pieces} pieces, but {files.configuration.name} says "
                f"vocab_size = {self.config.vocab_size}; the two are not of one model"
            )

    def write(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the model folder; `record` becomes its run.json, with the hashes of the source.

        Raises:
            ModelError: a variable is damaged.
        """
        has_head, has_pooler = MLM not in self.match.missing, POOLER not in self.match.missing
        with torch.device("meta"):
            model = (
                LertForPreTraining(self.config)
                if has_head
                else LertModel(self.config, add_pooling_layer=has_pooler)
            )
        weights, extra = self._weights()
        if not has_head:  # the encoder is the whole model, and its pooler a part of it
            weights = {name.removeprefix(_PREFIX): w for name, w in (weights | extra).items()}
            extra = {}
        record = {**record, "files": {p.name: sha256_of(p) for p in self._sources()}}
        with tokenizer_files.folder_of(self.files.vocabulary) as tokenizer:
            model_dir.save(model, tokenizer, folder, record, state_dict=weights, extra=extra)

    def _weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights: dict[str, Tensor] = {}
        extra: dict[str, Tensor] = {}
        for entry in self.match.entries:
            values = self.checkpoint.read(entry.variable)
            values = np.ascontiguousarray(values.T if entry.transposed else values)
            (extra if entry.part == POOLER else weights)[entry.parameter] = torch.from_numpy(values)
        return weights, extra

    def _sources(self) -> list[Path]:
        return [*self.checkpoint.files, self.files.configuration, self.files.vocabulary]


def _with_heads(config: LertConfig, tasks: tuple[str, ...], files: CheckpointFiles) -> LertConfig:
    """Return the configuration with the tag sets of the heads that are there.

    They are LTP's, whose order the released weights have, unless the configuration has its own.

    Raises:
        ModelError: a head is of no task that is known, and the configuration names no tags for it.
    """
    own = config.tag_sets or {}
    tag_sets = {}
    for task in tasks:
        tags = own.get(task) or LTP_TAGS.get(task)
        if tags is None:
            raise ModelError(
                f"{files.prefix.name}: a linguistic head {task}, for which {files.configuration} "
                f"names no tags; name them, in the order of its classes, under tag_sets.{task}"
            )
        tag_sets[task] = list(tags)
    config.tag_sets = tag_sets or None
    return config
