"""`masking.cpp`, the masking of a micro-batch: built in seconds on its first use."""

import ctypes
import functools
from pathlib import Path

import numpy as np

from lert_ds import op_builds
from lert_ds.data import masking
from lert_ds.data.draws import MASKING_STREAM
from lert_ds.data.masking import MaskedRows, MaskingConfig, VocabularyFacts
from lert_ds.data.sampler import Samples
from lert_ds.data.shards import Rows

SOURCE = Path(__file__).with_name("masking.cpp")
FLAGS = ("-O3", "-std=c++20", "-ffp-contract=off")


class _Masking(ctypes.Structure):
    """`Masking` of the source."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("share", "mask_share", "kept_from")),
        *((name, ctypes.c_void_p) for name in ("borders", "never_masked", "replacements")),
        *((name, ctypes.c_uint64) for name in ("seed", "stream")),
        *((name, ctypes.c_int64) for name in ("limit", "lengths", "replacement_count", "mask_id")),
    )


@functools.cache
def load() -> ctypes.CDLL | None:
    """Return the library; None, with a warning, where it cannot be built."""
    path = op_builds.build(SOURCE, FLAGS, "masks are drawn more slowly")
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    library.lert_ds_mask.restype = ctypes.c_int64
    return library


def mask_rows(
    rows: Rows,
    samples: Samples,
    seed: int,
    config: MaskingConfig,
    vocabulary: VocabularyFacts,
) -> MaskedRows:
    """Return what `masking.mask_rows` does, by the library where there is one."""
    if (library := load()) is None:
        return masking.mask_rows(rows, samples, seed, config, vocabulary)
    count, length = rows.input_ids.shape
    ids = np.ascontiguousarray(rows.input_ids)
    starts = np.ascontiguousarray(rows.word_starts)
    epochs, indices = (np.ascontiguousarray(array, np.int64) for array in samples)
    # Of a damaged corpus an id may be any: what it means then is for the model to refuse.
    never_masked = np.zeros(np.iinfo(np.uint16).max + 1, dtype=np.bool_)
    never_masked[: vocabulary.size] = vocabulary.never_masked
    borders = masking.borders_of(config.ngram_shares)
    limit = config.limit(length)
    facts = _Masking(
        config.share, config.mask_share, config.mask_share + config.random_share,
        borders.ctypes.data, never_masked.ctypes.data,
        vocabulary.replacements.ctypes.data, seed, MASKING_STREAM, limit,
        len(config.ngram_shares), len(vocabulary.replacements), vocabulary.mask_id,
    )  # fmt: skip
    input_ids = np.empty((count, length), dtype=np.int64)
    positions = np.empty(count * min(limit, length), dtype=np.int64)
    pointers = [
        ctypes.c_void_p(array.ctypes.data) if array is not None else None
        for array in (
            ids, starts if config.whole_word else None, epochs, indices, input_ids, positions,
        )
    ]  # fmt: skip
    sizes = (count, length, count // max(len(indices), 1))
    found = library.lert_ds_mask(ctypes.byref(facts), *map(ctypes.c_int64, sizes), *pointers)
    return MaskedRows(input_ids, positions[:found].copy())
