"""A corpus read in a smaller vocabulary than it was prepared with, that of a pruned model.

    corpus   [CLS] 今  天  铩  羽  [SEP]      ids of the whole vocabulary, on disk
    read as  [CLS] 今  天 [UNK] 羽 [SEP]      ids of the smaller one: 铩 is gone from it

So a pruned model trains and is measured on the corpora that are there; nothing is prepared anew.
Words, tags and the places that are masked stay the same; what has become [UNK] is not predicted
(`evaluation_batches` can do so, to compare models of several vocabularies).
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from lert_ds import tokenizer_files
from lert_ds.data.shards import Corpus
from lert_ds.errors import ModelError
from lert_ds.model_source import check_tokenizer


def in_vocabulary_of(corpus: Corpus, folder: Path) -> Corpus:
    """Return `corpus` in the ids of the tokenizer in `folder`; itself where they are the same.

    Raises:
        ModelError: that tokenizer has pieces that the corpus's lacks, or there is none.
    """
    assert not corpus.is_renumbered, "a view of a view: open the corpus itself"
    source = corpus.folders[0]
    ids = places(source, folder)
    if ids is None:
        return corpus
    tokenizer = tokenizer_files.load(folder)
    new_ids = np.full(corpus.manifest.vocabulary_size, tokenizer.unk_token_id, dtype=np.uint16)
    new_ids[ids] = np.arange(len(ids))
    manifest = dataclasses.replace(
        corpus.manifest,
        vocabulary_size=len(ids),
        tokenizer_sha256=_sha256(tokenizer),
        special_ids={name: int(new_ids[n]) for name, n in corpus.manifest.special_ids.items()},
    )
    return corpus.renumbered(new_ids, manifest)


def places(whole: Path, smaller: Path) -> list[int] | None:
    """Return the ids, rising, that the pieces of one tokenizer have in another, larger one.

    Args:
        whole: A model or corpus folder.
        smaller: Another, with a tokenizer whose pieces are among those of `whole`.

    Returns:
        One id for each id of `smaller`; None where both tokenizers have the same pieces.

    Raises:
        ModelError: `smaller` has pieces that `whole` lacks, or in another order.
    """
    theirs, ours = tokenizer_files.load(whole), tokenizer_files.load(smaller)
    pieces = tokenizer_files.pieces(ours)
    if pieces == tokenizer_files.pieces(theirs):
        return None
    vocabulary: dict[str, int] = theirs.get_vocab()
    ids = [vocabulary.get(piece, -1) for piece in pieces]
    if any(later <= earlier for earlier, later in zip([-1, *ids], ids, strict=False)):
        check_tokenizer(smaller, _sha256(theirs))  # the common case: simply another tokenizer
        raise ModelError(
            f"{smaller}: its tokenizer is no smaller version of that of {whole}: pieces are added "
            "or in another order; use models and corpora of one tokenizer"
        )
    return ids


def _sha256(tokenizer: object) -> str:
    content = "".join(f"{piece}\n" for piece in tokenizer_files.pieces(tokenizer))
    return hashlib.sha256(content.encode("utf-8")).hexdigest()
