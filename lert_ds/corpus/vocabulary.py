"""A tokenizer from wherever it is kept, or learnt from text; and its files in a corpus folder.

Only BERT's WordPiece is taken: LERT has no other, and `Encoder` relies on its pre-tokenizer. Text
is never matched with special or added tokens, so "[MASK]" in a web page is eight characters.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from lert_ds.errors import CorpusError, ModelError
from lert_ds.files import sha256_of, write_json, write_whole

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Role to token, in the order of their ids in a learnt vocabulary: [PAD] is 0."""
VOCABULARY_FILE = "vocab.txt"
_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
_LARGEST = 65_535
"""Ids of a shard are uint16."""
_CONTINUES = "##"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and what a manifest says of it."""

    tokenizer: Tokenizer
    """Encodes text without special tokens."""
    pieces: list[str]
    """Piece of every id."""
    special_ids: dict[str, int]
    """`pad`, `unk`, `cls`, `sep`, `mask` to their ids."""
    normalizer: dict[str, Any]
    """Arguments of the BERT normalizer: lowercase, strip_accents and so on."""

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.pieces)


def load_tokenizer(name: str) -> Vocabulary:
    """Return the tokenizer of a model or corpus folder, a vocab.txt, or a name on the hub.

    Raises:
        ModelError: nothing is there, or it is no BERT WordPiece tokenizer.
    """
    path = Path(name)
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return _from_json(path / "tokenizer.json")
        if (path / VOCABULARY_FILE).is_file():
            return _from_vocabulary_file(path / VOCABULARY_FILE)
        raise ModelError(f"tokenizer = {name}: the folder has neither tokenizer.json nor vocab.txt")
    if path.is_file():
        return _from_json(path) if path.suffix == ".json" else _from_vocabulary_file(path)
    # owner/name: anything else was meant as a path, and asking the network for it would mislead.
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or path.suffix in (".txt", ".json"):
        raise ModelError(f"tokenizer = {name}: there is no such file or folder")
    try:
        return load_tokenizer(snapshot_download(name, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"tokenizer = {name}: neither a file or folder here nor to be had from the hub "
            f'({reason}); offline, name a local folder, a vocab.txt, or "train"'
        ) from error


def save_tokenizer(vocabulary: Vocabulary, folder: Path, max_length: int) -> str:
    """Write the files that transformers loads a tokenizer from; return the hash of vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{piece}\n" for piece in vocabulary.pieces).encode("utf-8")
    write_whole(folder / VOCABULARY_FILE, lambda file: file.write(lines))
    whole = _with_special_tokens(vocabulary).to_str(pretty=True).encode("utf-8")
    write_whole(folder / "tokenizer.json", lambda file: file.write(whole))
    flags = vocabulary.normalizer
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": flags["lowercase"],
            "strip_accents": flags["strip_accents"],
            "tokenize_chinese_chars": flags["handle_chinese_chars"],
            "model_max_length": max_length,
            **{f"{role}_token": token for role, token in SPECIAL_TOKENS.items()},
        },
    )
    return sha256_of(folder / VOCABULARY_FILE)


def count_pieces(texts: Iterable[str]) -> Counter[str]:
    """Return how often each pre-token of `texts` occurs: a Han character, a mark, a Latin word."""
    normalizer = normalizers.BertNormalizer()
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        words = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(word for word, _ in words if len(word) <= 100)  # longer ones are [UNK] anyway
    return counts


def learn_vocabulary(counts: Counter[str], size: int, minimum_frequency: int) -> Vocabulary:
    """Return a WordPiece tokenizer of at most `size` pieces from the counts of `count_pieces`.

    Characters come first, the most frequent ones where not all fit; what is left goes to pieces of
    the words of several characters. The same counts give the same vocabulary, in any order.

    Raises:
        CorpusError: there is nothing to learn from.
    """
    alone: Counter[str] = Counter()  # characters that open a word
    continuing: Counter[str] = Counter()
    for word, count in counts.items():
        alone[word[0]] += count
        for character in word[1:]:
            continuing[_CONTINUES + character] += count
    frequent = [
        (piece, count)
        for piece, count in [*alone.items(), *continuing.items()]
        if count >= minimum_frequency
    ]
    if not frequent:
        raise CorpusError(
            f"no character occurs {minimum_frequency} times, so there is no vocabulary to learn; "
            "give more text or lower vocabulary_minimum_frequency"
        )
    frequent.sort(key=lambda item: (-item[1], item[0]))
    special = list(SPECIAL_TOKENS.values())
    alphabet = sorted((piece for piece, _ in frequent[: size - len(special)]), key=_order)
    learnt = _learn_pieces(counts, [*special, *alphabet], size, minimum_frequency)
    pieces = [*special, *alphabet, *sorted(learnt, key=_order)]
    return _make(pieces, {"lowercase": True, "strip_accents": None}, "a learnt vocabulary")


def _learn_pieces(
    counts: Counter[str], known: list[str], size: int, minimum_frequency: int
) -> list[str]:
    """Return the pieces that the trainer of `tokenizers` adds to the `known` ones."""
    # The trainer passes over a character that it does not know in its opening form.
    opening = {piece.removeprefix(_CONTINUES) for piece in known if len(piece) > len(_CONTINUES)}
    more = sorted(opening - set(known))
    there = {*known, *more}
    trainer = trainers.WordPieceTrainer(
        vocab_size=size + len(more),
        min_frequency=minimum_frequency,
        # As special tokens the characters get their ids in our order; the trainer's own would
        # follow a hash table's, and ties between merges are broken by id.
        special_tokens=[*known, *more],
        limit_alphabet=0,
        show_progress=False,
    )
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(_repeat(counts), trainer)
    return [piece for piece in learner.get_vocab(with_added_tokens=False) if piece not in there]


def _repeat(counts: Counter[str]) -> Iterator[str]:
    """Yield every word of several characters as often as it occurs, in lines of bounded length."""
    for word, count in sorted(counts.items()):
        for _ in range(0, count if len(word) > 1 else 0, 1000):
            yield " ".join([word] * min(count, 1000))
            count -= 1000


def _order(piece: str) -> tuple[bool, str]:
    return piece.startswith(_CONTINUES) and len(piece) > len(_CONTINUES), piece


def _from_vocabulary_file(path: Path) -> Vocabulary:
    try:
        pieces = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"tokenizer = {path}: not UTF-8 text, so it is no vocab.txt") from error
    while pieces and not pieces[-1].strip():
        pieces.pop()
    pieces = [piece.rstrip("\r") for piece in pieces]
    return _make(pieces, _flags_beside(path), str(path))


def _flags_beside(path: Path) -> dict[str, Any]:
    """Return the normalizer's arguments from the tokenizer_config.json beside a vocab.txt."""
    config_path = path.with_name("tokenizer_config.json")
    settings: dict[str, Any] = {}
    if config_path.is_file():
        try:
            settings = json.loads(config_path.read_text("utf-8"))
        except ValueError as error:
            raise ModelError(f"{config_path}: not valid JSON ({error})") from error
    return {
        "lowercase": settings.get("do_lower_case", True),
        "strip_accents": settings.get("strip_accents"),
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
    }


def _from_json(path: Path) -> Vocabulary:
    try:
        tree = json.loads(path.read_text("utf-8"))
        kinds = [
            (tree[part] or {}).get("type") for part in ("model", "normalizer", "pre_tokenizer")
        ]
        wanted = ["WordPiece", "BertNormalizer", "BertPreTokenizer"]
        if kinds != wanted:
            raise ModelError(
                f"tokenizer = {path}: a BERT WordPiece tokenizer is needed ({', '.join(wanted)}), "
                f"this is {', '.join(map(str, kinds))}; name a Chinese BERT's"
            )
        by_piece: dict[str, int] = dict(tree["model"]["vocab"])
        by_piece.update({token["content"]: token["id"] for token in tree.get("added_tokens", [])})
        flags = {name: value for name, value in tree["normalizer"].items() if name != "type"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"tokenizer = {path}: not a tokenizer.json ({error!r})") from error
    pieces = sorted(by_piece, key=lambda piece: by_piece[piece])
    if [by_piece[piece] for piece in pieces] != list(range(len(pieces))):
        raise ModelError(f"tokenizer = {path}: its ids have gaps or repeat; name another")
    return _make(pieces, flags, str(path))


def _make(pieces: list[str], flags: dict[str, Any], where: str) -> Vocabulary:
    by_piece = {piece: number for number, piece in enumerate(pieces)}
    if missing := [token for token in SPECIAL_TOKENS.values() if token not in by_piece]:
        raise ModelError(f"tokenizer = {where}: it lacks {', '.join(missing)}; name a BERT's")
    if len(by_piece) != len(pieces):
        repeated = next(piece for number, piece in enumerate(pieces) if by_piece[piece] != number)
        raise ModelError(f"tokenizer = {where}: the piece {repeated!r} stands there twice")
    if len(pieces) > _LARGEST:
        raise ModelError(
            f"tokenizer = {where}: {len(pieces):,} pieces, a corpus holds {_LARGEST:,} at most"
        )
    flags = {
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    } | flags
    tokenizer = Tokenizer(
        models.WordPiece(by_piece, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(**flags)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special_ids = {role: by_piece[token] for role, token in SPECIAL_TOKENS.items()}
    return Vocabulary(tokenizer, pieces, special_ids, flags)


def _with_special_tokens(vocabulary: Vocabulary) -> Tokenizer:
    """Return the tokenizer as a model uses it: [CLS] text [SEP], special tokens recognised."""
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    ids = vocabulary.special_ids
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", ids["sep"]), ("[CLS]", ids["cls"])
    )
    tokenizer.decoder = decoders.WordPiece(prefix=_CONTINUES)
    return tokenizer
