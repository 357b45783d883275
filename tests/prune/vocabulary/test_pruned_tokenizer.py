"""The rebuilt tokenizer against the whole one."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer

from lert_ds import model_dir, tokenizer_files
from lert_ds.configuration_lert import LertConfig
from lert_ds.corpus.vocabulary import load_tokenizer, save_tokenizer
from lert_ds.errors import ModelError
from lert_ds.modeling_lert import LertForMaskedLM
from prune.vocabulary import pruned_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abA天1。"
FORMS = [f"{opening}{letter}" for letter in LETTERS for opening in ("", "##")]
LONG = [
    f"{opening}{body}"
    for body in ("ab", "aba", "ba", "bb", "abab", "1a", "a1", "11", "天a", "天天", "Ab")
    for opening in ("", "##")
]


def write_vocabulary(folder: Path, pieces: Sequence[str], **flags: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(flags))
    return folder


def ids_of(tokenizer: Any, pieces: Sequence[str]) -> torch.Tensor:
    return torch.tensor(sorted(tokenizer.convert_tokens_to_ids(pieces)))


@st.composite
def vocabularies(draw: st.DrawFn, spelled: bool) -> list[str]:
    forms = FORMS if spelled else draw(st.lists(st.sampled_from(FORMS), unique=True))
    long = draw(st.lists(st.sampled_from(LONG), unique=True))
    return draw(st.permutations([*SPECIAL, *forms, *long]))


FLAGS = st.fixed_dictionaries(
    {},
    optional={
        "do_lower_case": st.booleans(),
        "strip_accents": st.booleans(),
        "tokenize_chinese_chars": st.booleans(),
    },
)
TEXTS = st.lists(
    st.one_of(st.text(LETTERS + "AÁc \n", max_size=8), st.sampled_from(["[MASK]", "##a", "[UNK]"]))
).map("".join)


def check_same_pieces(
    pieces: list[str], text: str, flags: dict[str, Any], data: st.DataObject, unknown: bool
) -> None:
    """Keep what `text` needs and some more, and compare what every reader makes of the text."""
    with tempfile.TemporaryDirectory() as name:
        source = write_vocabulary(Path(name) / "whole", pieces, **flags)
        whole = tokenizer_files.load(source)
        wanted = whole.tokenize(text)
        assume(unknown or "[UNK]" not in wanted)
        more = data.draw(st.sets(st.sampled_from(pieces)))
        ids = ids_of(whole, [*{*SPECIAL, *wanted, *more}])
        target = Path(name) / "pruned"
        pruned = pruned_tokenizer.save(source, ids, target)
        for reader in (pruned, AutoTokenizer.from_pretrained(target)):
            assert reader.tokenize(text) == wanted
            assert ids[reader(text)["input_ids"]].tolist() == whole(text)["input_ids"]
        plain = Tokenizer.from_file(str(target / "tokenizer.json")).encode(text)
        assert plain.tokens == ["[CLS]", *wanted, "[SEP]"]
        (target / "tokenizer.json").unlink()
        assert BertTokenizer.from_pretrained(target)(text)["input_ids"] == plain.ids


@settings(max_examples=40, deadline=None)
@given(vocabularies(spelled=True), TEXTS, FLAGS, st.data())
def test_covered_text_gives_the_same_pieces(
    pieces: list[str], text: str, flags: dict[str, Any], data: st.DataObject
) -> None:
    check_same_pieces(pieces, text, flags, data, unknown=True)


@settings(max_examples=40, deadline=None)
@given(vocabularies(spelled=False), TEXTS, FLAGS, st.data())
def test_known_text_gives_the_same_pieces_whatever_the_vocabulary(
    pieces: list[str], text: str, flags: dict[str, Any], data: st.DataObject
) -> None:
    check_same_pieces(pieces, text, flags, data, unknown=False)


@pytest.mark.parametrize("layout", ["saved", "version 4", "corpus"])
def test_settings_and_added_tokens_survive(tmp_path: Path, layout: str) -> None:
    pieces = ["[unused]", *SPECIAL, "a", "b", "天", "##c", "A", "é"]
    source = write_vocabulary(
        tmp_path / "source", pieces, do_lower_case=False, strip_accents=False, model_max_length=77
    )
    added: list[str] = []
    if layout == "corpus":
        vocabulary = load_tokenizer(str(source))
        source = tmp_path / "corpus"
        save_tokenizer(vocabulary, source, 77)
    else:
        added = ["[ENT]", "武将", "<e>"]
        tokenizer = tokenizer_files.load(source)
        tokenizer.add_tokens(added[:2])
        tokenizer.add_special_tokens({"additional_special_tokens": added[2:]})
        source = tmp_path / "saved"
        tokenizer.save_pretrained(source)
    if layout == "version 4":
        path = source / "tokenizer_config.json"
        tree = json.loads(path.read_text())
        del tree["extra_special_tokens"]
        tree["additional_special_tokens"] = ["<e>"]
        tokens = json.loads((source / "tokenizer.json").read_text())["added_tokens"]
        tree["added_tokens_decoder"] = {str(token.pop("id")): token for token in tokens}
        path.write_text(json.dumps(tree))
        (source / "added_tokens.json").write_text(
            json.dumps({token: whole_id for whole_id, token in enumerate(added, start=12)})
        )
    whole = tokenizer_files.load(source)
    kept = [*SPECIAL, "a", "##c", "A", "é", *added]
    target = tmp_path / "target"
    pruned = pruned_tokenizer.save(source, ids_of(whole, kept), target)

    assert tokenizer_files.pieces(pruned) == kept
    assert (target / "vocab.txt").read_text("utf-8").splitlines() == kept
    assert pruned.model_max_length == 77
    assert pruned.get_added_vocab().keys() == {*SPECIAL, *added}
    assert set(pruned.all_special_tokens) == set(whole.all_special_tokens)
    text = "acéA" if layout == "corpus" else "ac武将[ENT]é<e>A"
    wanted = whole(text, "a")
    found = pruned(text, "a")
    assert pruned.convert_ids_to_tokens(found["input_ids"]) == whole.convert_ids_to_tokens(
        wanted["input_ids"]
    )
    assert found["token_type_ids"] == wanted["token_type_ids"]
    assert "b" not in pruned.get_vocab()
    assert pruned("b")["input_ids"] == [2, 1, 3]
    plain = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert plain.encode(text, "a").ids == found["input_ids"]
    tokens = json.loads((target / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    assert {token["content"]: token["id"] for token in tokens} == {
        token: kept.index(token) for token in [*SPECIAL, *added]
    }
    assert plain.encode("é").tokens[1:-1] == ["é"]  # neither lower case nor accents are touched
    if layout == "version 4":
        settings_ = json.loads((target / "tokenizer_config.json").read_text())
        assert settings_["added_tokens_decoder"]["10"]["content"] == "武将"
        added_ids = json.loads((target / "added_tokens.json").read_text("utf-8"))
        assert added_ids == {token: kept.index(token) for token in added}


def test_padding_of_the_file_gets_the_new_id(tmp_path: Path) -> None:
    source = write_vocabulary(tmp_path / "source", ["a", *SPECIAL])
    saved = tmp_path / "saved"
    tokenizer = tokenizer_files.load(source)
    tokenizer.backend_tokenizer.enable_padding(pad_id=1, pad_token="[PAD]", length=4)
    tokenizer.save_pretrained(saved)
    pruned_tokenizer.save(saved, torch.arange(1, 6), tmp_path / "target")
    plain = Tokenizer.from_file(str(tmp_path / "target/tokenizer.json"))
    assert plain.encode("a").ids == [2, 1, 3, 0]


def test_a_model_folder_is_saved_with_it(tmp_path: Path) -> None:
    source = write_vocabulary(tmp_path / "source", [*SPECIAL, "a", "b"])
    pruned_tokenizer.save(source, torch.tensor([0, 1, 2, 3, 4, 6]), tmp_path / "target")
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LertForMaskedLM(LertConfig(vocab_size=6, intermediate_size=4, **sizes))
    model_dir.save(model, tmp_path / "target", tmp_path / "model")
    for reader in (tokenizer_files.load, AutoTokenizer.from_pretrained):
        assert reader(tmp_path / "model")("ab b")["input_ids"] == [2, 1, 5, 3]


def test_what_stood_in_the_folder_is_not_read(tmp_path: Path) -> None:
    source = write_vocabulary(tmp_path / "source", [*SPECIAL, "a", "b"])
    target = tmp_path / "target"
    target.mkdir()
    (target / "added_tokens.json").write_text('{"天": 9}')
    pruned = pruned_tokenizer.save(source, torch.arange(6), target)
    assert len(pruned) == 6
    assert not (target / "added_tokens.json").exists()


def test_special_tokens_cannot_be_lost(tmp_path: Path) -> None:
    source = write_vocabulary(tmp_path / "source", [*SPECIAL, "a"])
    with pytest.raises(ModelError, match=r"source: .* leave out the token \[SEP\]; keep every"):
        pruned_tokenizer.save(source, torch.tensor([0, 1, 2, 4, 5]), tmp_path / "target")
    assert not (tmp_path / "target").exists()
