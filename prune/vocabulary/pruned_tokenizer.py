"""The tokenizer of a smaller vocabulary: the files of the whole one, with their ids renumbered.

Every reader has its own file: transformers 5 reads tokenizer.json and, where that is there, not
vocab.txt; others read vocab.txt. Each file keeps its settings and gets the new ids.

WordPiece takes the longest piece that fits, so a word whose pieces all stay is cut as before: what
was longest still is. A word that was [UNK] stays [UNK] where the whole vocabulary can spell all of
its pieces by single characters, as Chinese BERT's can. Where it cannot, such a word may become
known: it was [UNK] because the longest piece led nowhere, and that piece may be gone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lert_ds import tokenizer_files
from lert_ds.errors import ModelError
from lert_ds.files import write_json, write_whole

_ADDED_TOKENS = "added_tokens.json"


def save(source: Path, pieces: Tensor, target: Path) -> Any:
    """Write the tokenizer of `source` with some of its pieces to the folder `target`; return it.

    Args:
        source: A model or corpus folder.
        pieces: int64 [kept], the ids that stay, rising; id `pieces[i]` becomes i.
        target: Made where it is not there; tokenizer files in it are replaced.

    Raises:
        ModelError: no tokenizer in `source`, or it would lose a special or an added token.
    """
    assert target.resolve() != source.resolve(), "the whole tokenizer is not written over"
    whole = tokenizer_files.load(source)
    ids: list[int] = pieces.tolist()
    by_id = {number: piece for piece, number in whole.get_vocab().items()}
    assert ids == sorted(set(ids)), "the ids of kept pieces rise"
    assert set(ids) <= by_id.keys(), "ids that the tokenizer does not have"
    new_ids = {old: new for new, old in enumerate(ids)}
    for number in sorted(always_kept(whole)):
        if number not in new_ids:
            raise ModelError(
                f"{source}: the pieces to keep leave out the token {by_id[number]}; "
                "keep every special and added token"
            )
    target.mkdir(parents=True, exist_ok=True)
    for name in tokenizer_files.NAMES:  # what an earlier tokenizer left would be read as well
        (target / name).unlink(missing_ok=True)
    tokenizer_files.copy(source, target, max(by_id) + 1)
    kept = [by_id[number] for number in ids]
    _renumber(target, kept, new_ids)
    pruned = tokenizer_files.load(target)
    assert tokenizer_files.pieces(pruned) == kept, f"{target}: not the pieces that were to stay"
    return pruned


def always_kept(tokenizer: Any) -> set[int]:
    """Return the ids of the special tokens and of those that were added to the vocabulary."""
    return {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}


def _renumber(folder: Path, kept: Sequence[str], new_ids: Mapping[int, int]) -> None:
    """Give the tokenizer files of `folder` the new ids; `kept` are the pieces in their order."""
    lines = "".join(f"{piece}\n" for piece in kept).encode("utf-8")
    write_whole(folder / tokenizer_files.VOCABULARY, lambda file: file.write(lines))

    tree = _read(folder / tokenizer_files.TOKENIZER)
    vocabulary: dict[str, int] = tree["model"]["vocab"]
    tree["model"]["vocab"] = {
        piece: new_ids[number]
        for piece, number in sorted(vocabulary.items(), key=lambda item: item[1])
        if number in new_ids
    }
    for token in tree["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if tree.get("padding"):
        tree["padding"]["pad_id"] = new_ids[tree["padding"]["pad_id"]]
    _renumber_processor(tree.get("post_processor"), new_ids)
    write_json(folder / tokenizer_files.TOKENIZER, tree)

    settings = _read(folder / tokenizer_files.SETTINGS)
    if "added_tokens_decoder" in settings:  # transformers 4 keeps the added tokens here too
        settings["added_tokens_decoder"] = {
            str(new_ids[int(number)]): token
            for number, token in settings["added_tokens_decoder"].items()
        }
        write_json(folder / tokenizer_files.SETTINGS, settings)
    if (folder / _ADDED_TOKENS).is_file():
        added = _read(folder / _ADDED_TOKENS)
        write_json(
            folder / _ADDED_TOKENS, {token: new_ids[number] for token, number in added.items()}
        )


def _renumber_processor(processor: dict[str, Any] | None, new_ids: Mapping[int, int]) -> None:
    """Give what puts [CLS] and [SEP] around a text their new ids, in place."""
    if processor is None:
        return
    kind = processor["type"]
    assert kind in ("TemplateProcessing", "BertProcessing"), kind
    if kind == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [new_ids[number] for number in token["ids"]]
    else:
        for role in ("cls", "sep"):
            token, number = processor[role]
            processor[role] = [token, new_ids[number]]


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
