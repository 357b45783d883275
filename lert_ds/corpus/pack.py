"""Aligned tokens to instances of one length, shard by shard.

document 1  |我们|去|北京|。|        document 2  |好|的|。|        max_length 8

[CLS] 我 们 去 北 京 。 [SEP]          a document goes on in the next instance, from a word border
[CLS] 好 的 。 [SEP] [PAD] …           documents of one instance are parted by [SEP]
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lert_ds.corpus.align import Tokens
from lert_ds.data.shards import ARRAYS, write_shard
from lert_ds.labels import IGNORE_INDEX, TASKS

Array = npt.NDArray[Any]

_SHARD_BYTES = 48_000_000
"""Memory of the instances that wait for their shard; a token takes 6 bytes in all arrays."""
_BYTES_A_TOKEN = sum(np.dtype(dtype).itemsize for dtype in ARRAYS.values())


class Packer:
    """Packs documents, one after the other, into the shards NAME-000, NAME-001, … of a folder."""

    def __init__(
        self,
        folder: Path,
        name: str,
        length: int,
        special_ids: Mapping[str, int],
        vocabulary_size: int,
        classes: Mapping[str, int],
        shard_bytes: int = _SHARD_BYTES,
    ) -> None:
        """Make a packer.

        Args:
            folder: corpus folder to write.
            name: beginning of the shards' names.
            length: tokens an instance.
            special_ids: `pad`, `cls`, `sep` to their ids.
            vocabulary_size: number of ids.
            classes: task to its number of tags.
            shard_bytes: size of a shard, about.
        """
        self.records: list[dict[str, Any]] = []
        """Records of the shards written."""
        self.counts: Counter[str] = Counter()
        self.token_counts = np.zeros(vocabulary_size, dtype=np.int64)
        """How often each id stands in the instances, special tokens too."""
        self.class_counts = {task: np.zeros(256, dtype=np.int64) for task in TASKS}
        """How often each class stands at a token of text."""
        self.words = 0
        self._folder, self._name, self._length = folder, name, length
        self._pad, self._cls, self._sep = (special_ids[role] for role in ("pad", "cls", "sep"))
        self._special = np.zeros(vocabulary_size, dtype=bool)
        self._special[[self._pad, self._cls, self._sep]] = True
        self._classes = classes
        rows = max(1, shard_bytes // (_BYTES_A_TOKEN * length))
        self._arrays = {
            name: np.empty((rows, length), dtype=dtype) for name, dtype in ARRAYS.items()
        }
        self._row = 0
        self._used = 0  # tokens in the row; 0 where it is not begun
        self._separate = False  # a [SEP] goes before the next token

    def start_document(self) -> None:
        """Say that what comes next is of another document."""
        self._separate = self._used > 0

    def add(self, tokens: Tokens) -> None:
        """Add tokens of the present document, whole words of it."""
        borders = np.append(np.flatnonzero(tokens.word_starts), len(tokens.ids))
        start = 0
        while start < len(tokens.ids):
            if not self._used:
                self._open_row()
            # One place stays free for the last [SEP], another for the one between documents.
            room = self._length - self._used - 1 - self._separate
            end = min(start + max(room, 0), len(tokens.ids))
            end = int(borders[np.searchsorted(borders, end, side="right") - 1])
            if end <= start:
                if self._used > 1:  # the next word does not fit here
                    self._close_row()
                    continue
                end = start + room
                self.counts["word longer than an instance, cut"] += 1
            self._copy(tokens.part(start, end))
            start = end

    def finish(self) -> None:
        """Write what is left: the last instance may be part padding."""
        if self._used > 1:
            self._close_row()
        self._write()

    def _open_row(self) -> None:
        for name, array in self._arrays.items():
            array[self._row] = 0 if name in ("input_ids", "word_starts") else IGNORE_INDEX
        self._arrays["input_ids"][self._row, :] = self._pad
        self._arrays["input_ids"][self._row, 0] = self._cls
        self._used = 1
        self._separate = False

    def _copy(self, tokens: Tokens) -> None:
        ids, starts = self._arrays["input_ids"][self._row], self._arrays["word_starts"][self._row]
        if self._separate:
            ids[self._used] = self._sep
            self._used += 1
            self._separate = False
        place = slice(self._used, self._used + len(tokens.ids))
        ids[place] = tokens.ids
        starts[place] = tokens.word_starts
        starts[self._used] |= self._used == 1  # the rest of a word that was cut
        for task, classes in tokens.tags.items():
            self._arrays[task][self._row, place] = classes
        self._used = place.stop

    def _close_row(self) -> None:
        self._arrays["input_ids"][self._row, self._used] = self._sep
        self._used = 0
        self._separate = False
        self._row += 1
        if self._row == len(self._arrays["input_ids"]):
            self._write()

    def _write(self) -> None:
        if not self._row:
            return
        arrays = {name: array[: self._row] for name, array in self._arrays.items()}
        self._count(arrays)
        name = f"{self._name}-{len(self.records):03d}"
        self.records.append(write_shard(self._folder, name, arrays))
        self._row = 0

    def _count(self, arrays: Mapping[str, Array]) -> None:
        ids = arrays["input_ids"].ravel()
        self.token_counts += np.bincount(ids, minlength=len(self.token_counts))
        text = ~self._special[ids]
        self.words += int(np.count_nonzero(arrays["word_starts"]))
        for task in TASKS:
            found = np.bincount(arrays[task].ravel()[text], minlength=256)
            assert not found[self._classes[task] : IGNORE_INDEX].any(), task
            self.class_counts[task] += found
