"""Tagging with PyTorch: what `fill` says where the [MASK]s are typed by hand."""

from pathlib import Path
from typing import Any

import pytest

from lert_ds import fill_mask, tag_words
from lert_ds.errors import ModelError
from lert_ds.predictions import MaskPrediction
from lert_ds.tagged import TaggedSentence
from lert_ds.tagging import Words

TAGS = {"pos": ["n", "v", "a"], "ner": ["O", "S-Ns"]}
SENTENCES = [
    Words("今天天气很好。", ["今天", "天气", "很", "好", "。"]),
    Words("明天再见", ["明天", "再见"]),
    Words("好", ["好"]),
    Words("going 雨，天", ["going", "雨", "，", "天"]),  # two pieces, and one that is [UNK]
    Words("今天天气很好，明天再见。" * 3, ["今天", "天气", "很好", "，", "明天", "再见", "。"] * 3),
    Words("天" * 30, ["天", "天" * 28, "天"]),
]


@pytest.fixture
def loaded(tmp_path: Path, write_filler: Any) -> Any:
    write_filler(tmp_path / "model")
    return fill_mask.load(str(tmp_path / "model"))


def compare(left: TaggedSentence, right: TaggedSentence) -> None:
    assert left.text == right.text
    for ours, theirs in zip(left.words, right.words, strict=True):
        assert ours.word == theirs.word
        assert ours.tags.keys() == theirs.tags.keys()
        pairs = [(ours.pieces, theirs.pieces)]
        pairs += [(ours.tags[task], theirs.tags[task]) for task in ours.tags]
        for one, other in pairs:
            assert [entry.name for entry in one] == [entry.name for entry in other]
            for first, second in zip(one, other, strict=True):
                assert first.probability == pytest.approx(second.probability, abs=1e-6)


def test_is_what_fill_says_of_masks_typed_by_hand(loaded: Any) -> None:
    model, tokenizer = loaded
    tagged = tag_words.make_tagger(model, tokenizer, "model").tag(SENTENCES[:4], top_k=9)
    for sentence, words in zip(tagged, SENTENCES, strict=False):
        for number, word in enumerate(sentence.words):
            own = len(word.pieces)
            place = sum(map(len, words.words[:number])) + (number > 0 and " " in words.text)
            before = words.text[:place] + "[MASK]" * own
            after = words.text[place + len(word.word) :]
            (filled,) = fill_mask.fill(model, tokenizer, [before + after], top_k=1000)
            assert len(filled.masks) == own
            check_word(word, filled.masks)
            check_means(model, tokenizer, before + after, word)


def check_word(word: Any, masks: list[MaskPrediction]) -> None:
    for piece, mask in zip(word.pieces, masks, strict=True):
        (found,) = [entry for entry in mask.pieces if entry.name == piece.name]
        assert piece.probability == pytest.approx(found.probability, abs=1e-6)


def check_means(model: Any, tokenizer: Any, text: str, word: Any) -> None:
    """The tags of one mask are the distribution itself, those of several its mean."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    output = model(ids, masked_positions=(ids.flatten() == tokenizer.mask_token_id).nonzero()[:, 0])
    for task, tags in TAGS.items():
        mean = output.tag_logits[task].softmax(-1).mean(0).tolist()
        found = {tag.name: tag.probability for tag in word.tags[task]}
        assert [found[tag] for tag in tags] == pytest.approx(mean, abs=1e-6)
        assert word.tags[task][0].name == tags[mean.index(max(mean))]


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 8192])
def test_the_result_does_not_depend_on_batches(loaded: Any, tokens_per_batch: int) -> None:
    model, tokenizer = loaded
    tagger = tag_words.make_tagger(model, tokenizer, "model", tokens_per_batch)
    together = tagger.tag(SENTENCES, top_k=9)
    assert [len(sentence.words) for sentence in together] == [5, 2, 1, 4, 21, 3]
    one = tag_words.make_tagger(model, tokenizer, "model", tokens_per_batch=1)
    for sentence, given in zip(together, SENTENCES, strict=True):
        compare(sentence, one.tag([given], top_k=9)[0])


def test_a_sentence_longer_than_the_model_is_seen_in_part(loaded: Any) -> None:
    model, tokenizer = loaded
    (tagged,) = tag_words.make_tagger(model, tokenizer, "model").tag(SENTENCES[4:5])
    text = SENTENCES[4].text
    # 36 pieces, 16 positions: 明天 of the second third, at 19, is seen with 6 pieces on each side.
    (filled,) = fill_mask.fill(model, tokenizer, [text[13:19] + "[MASK][MASK]" + text[21:27]], 1000)
    word = tagged.words[11]
    assert word.word == "明天"
    check_word(word, filled.masks)


def test_a_model_without_heads_is_refused(tmp_path: Path, write_filler: Any) -> None:
    write_filler(tmp_path / "plain", tag_sets=None)
    with pytest.raises(ModelError, match="plain: it has no linguistic heads that have learnt"):
        tag_words.make_tagger(*fill_mask.load(str(tmp_path / "plain")), "plain")
