"""Tagged sentences as tables and as JSON."""

import json

from lert_ds.predictions import Candidate, columns_of
from lert_ds.tagged import TaggedSentence, TaggedWord, show

SENTENCE = TaggedSentence(
    "今天go。",
    [
        TaggedWord(
            "今天",
            [Candidate("今", 0.5), Candidate("天", 0.25)],
            {"pos": [Candidate("nt", 0.98), Candidate("n", 0.01)], "ner": [Candidate("O", 1.0)]},
        ),
        TaggedWord("\x00", [], {}),
        TaggedWord("go", [], {"pos": [Candidate("ws", 0.5)], "ner": [Candidate("S-Ns", 0.125)]}),
    ],
)


def test_table_is_aligned() -> None:
    head, *lines = show(SENTENCE, as_json=False).splitlines()
    assert head == "今天go。"
    assert lines[0] == "  今天   pos nt 98.0 %   n 1.0 %   ner O 100.0 %"
    assert lines[1].split() == ["\x00", "pos", "–", "ner", "–"]
    assert len({columns_of(line[: line.index("pos")]) for line in (lines[0], lines[2])}) == 1
    assert len({columns_of(line[: line.index("ner")]) for line in (lines[0], lines[2])}) == 1
    assert not [line for line in lines if line != line.rstrip()]


def test_a_sentence_without_words_is_its_text() -> None:
    assert show(TaggedSentence("", []), as_json=False) == ""
    assert show(TaggedSentence("a", [TaggedWord("a", [], {})]), as_json=False) == "a\n  a"


def test_json_has_everything() -> None:
    line = show(SENTENCE, as_json=True)
    assert "\n" not in line
    tree = json.loads(line)
    assert tree["text"] == "今天go。"
    assert [word["word"] for word in tree["words"]] == ["今天", "\x00", "go"]
    assert tree["words"][0]["pieces"][1] == {"name": "天", "probability": 0.25}
    assert tree["words"][0]["tags"]["pos"][1] == {"name": "n", "probability": 0.01}
