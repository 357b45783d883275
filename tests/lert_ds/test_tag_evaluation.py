"""Gold tags beside predicted ones: figures, and files that are refused."""

import json
from pathlib import Path

import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.errors import UserError
from lert_ds.predictions import Candidate
from lert_ds.tag_evaluation import TagEvaluation, read_gold, refuse_other_tags
from lert_ds.tagged import TaggedSentence, TaggedWord

GOLD = ["n", "n", "v", "a", "n", "v", None, "other", "n"]
PREDICTED = ["n", "v", "v", "n", "n", "u", "n", "n", None]


def evaluated() -> TagEvaluation:
    evaluation = TagEvaluation({"pos": ["n", "v", "a", "u", "never"], "dep": ["HED"]})
    for part in (slice(0, 4), slice(4, 9)):
        words = [f"w{number}" for number in range(9)][part]
        found = [
            TaggedWord(word, [], {} if tag is None else {"pos": [Candidate(tag, 1.0)]})
            for word, tag in zip(words, PREDICTED[part], strict=True)
        ]
        text = "".join(words)
        evaluation.add(AnnotatedSentence(text, words, GOLD[part]), TaggedSentence(text, found))
    return evaluation


def test_figures_are_those_of_scikit_learn() -> None:
    pos = evaluated().as_json()["tasks"]["pos"]
    gold, predicted = GOLD[:6], PREDICTED[:6]
    assert pos["words"] == 6
    assert pos["accuracy"] == pytest.approx(3 / 6)
    assert pos["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert pos["left_out"] == {"no tag": 1, "other": 1, "word without a piece": 1}
    given = {"labels": sorted(pos["tags"]), "average": None, "zero_division": 0.0}
    for name, score in (("precision", precision_score), ("recall", recall_score)):
        wanted = dict(zip(given["labels"], score(gold, predicted, **given), strict=True))
        assert {tag: figures[name] for tag, figures in pos["tags"].items()} == pytest.approx(wanted)


def test_shown() -> None:
    evaluation = evaluated()
    assert json.loads(evaluation.show(as_json=True)) == evaluation.as_json()
    first, head, pos, dep = evaluation.show(as_json=False).splitlines()
    assert first == "2 sentences"
    assert head.split() == ["task", "words", "accuracy", "macro-F1", "left", "out"]
    assert pos.split()[:4] == ["pos", "6", "50.0", "%"]
    assert pos.endswith("3 (no tag 1, other 1, word without a piece 1)")
    assert dep.split() == ["dep", "0", "–", "–", "9", "(no", "tag", "9)"]


CONLLU = "1\t他\t_\tPRON\tr\t_\t2\tnsubj:x\t_\t_\n2\t来\t_\tVERB\tv\t_\t0\troot\t_\t_\n\n"


def test_files_are_read_as_prepare_reads_them(tmp_path: Path) -> None:
    conllu, lines = tmp_path / "a.conllu", tmp_path / "a.jsonl"
    conllu.write_text("\ufeff" + CONLLU, "utf-8")
    (sentence,) = read_gold(conllu)
    assert (sentence.words, sentence.pos) == (["他", "来"], ["r", "v"])
    assert sentence.dep == ["nsubj:x", "root"]
    (sentence,) = read_gold(conllu, "upos", strip_subtypes=True)
    assert (sentence.pos, sentence.dep) == (["PRON", "VERB"], ["nsubj", "root"])
    lines.write_text('{"words": ["他", "来"], "pos": ["r", null]}\n\n', "utf-8")
    (sentence,) = read_gold(lines)
    assert sentence.pos == ["r", None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"--gold .*a.txt: name a .conllu file"),
        ("a.conllu", "1\t他\n", r"--gold .*a.conllu: line 1: 2 columns"),
        ("a.jsonl", "{}\n", r"--gold .*a.jsonl: line 1: not an annotated sentence"),
        ("a.jsonl", "\n", "there is no sentence in it"),
        ("none.jsonl", None, r"none.jsonl: No such file or directory; name a file"),
    ],
)
def test_what_is_refused(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(UserError, match=message):
        read_gold(tmp_path / name)


def test_tags_of_another_kind_are_refused_before_any_work() -> None:
    sets = {"pos": ["n", "v"], "dep": ["HED"]}
    path = Path("gold.conllu")
    other = AnnotatedSentence("ab", ["a", "b"], pos=["NOUN", None], dep=["root", "HED"])
    refuse_other_tags(path, [other], sets)
    with pytest.raises(UserError, match=r"gold.conllu: it has no tag .* \(pos NOUN\); name a file"):
        refuse_other_tags(path, [other], {"pos": ["n"]})
    bare = AnnotatedSentence("ab", ["a", "b"])
    with pytest.raises(UserError, match="none at all"):
        refuse_other_tags(path, [bare, bare], sets)


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_bytes(CONLLU.encode("gb18030"))
    with pytest.raises(UserError, match="not UTF-8 at byte 2"):
        read_gold(tmp_path / "a.conllu")
