from pathlib import Path

import pytest

from lert_ds.corpus.annotate import AnnotatorConfig, make_annotator, resolve_tag_sets
from lert_ds.corpus.annotators.conllu import ConlluAnnotator
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.corpus.text import locate_words
from lert_ds.errors import CorpusError
from lert_ds.labels import LTP_TAGS, TASKS

ROOT = Path(__file__).parents[4]
TREEBANK = ROOT / "../shared/data/treebank/zh_gsdsimp-ud-dev.conllu"
SAMPLE = ROOT / "lert_ds/samples/annotated.conllu"


def rows(*lines: str) -> str:
    """CoNLL-U of lines `id form upos xpos deprel misc`; comments as they are."""
    out = []
    for line in lines:
        if not line or line.startswith("#"):
            out.append(line)
            continue
        identifier, form, upos, xpos, deprel, misc = line.split(" ")
        out.append("\t".join([identifier, form, "_", upos, xpos, "_", "_", deprel, "_", misc]))
    return "\n".join(out) + "\n"


def read(text: str, **options: object) -> list[AnnotatedSentence]:
    annotator = ConlluAnnotator(**options)  # type: ignore[arg-type]
    return list(annotator.annotate((5, block) for block in annotator.sentences(text)))


CAME = rows(
    "# newdoc id = a",
    "# text = 他来 北京。",
    "1 他 PRON r SBV NER=O|SpaceAfter=No",
    "2 来 VERB v HED NER=O",
    "3 北京 PROPN ns VOB SpaceAfter=No|NER=S-Ns",
    "4 。 PUNCT wp WP NER=O",
    "",
    "1 好 ADJ a root:x _",
)


def test_columns_become_tags() -> None:
    first, second = read(CAME)
    assert first == AnnotatedSentence(
        text="他来 北京。",
        words=["他", "来", "北京", "。"],
        pos=["r", "v", "ns", "wp"],
        ner=["O", "O", "S-Ns", "O"],
        dep=["SBV", "HED", "VOB", "WP"],
        doc=5,
    )
    assert (second.text, second.pos, second.ner, second.dep) == ("好", ["a"], None, ["root:x"])


def test_options_choose_the_column_and_cut_subtypes() -> None:
    first, second = read(CAME, pos_column="upos", strip_subtypes=True)
    assert first.pos == ["PRON", "VERB", "PROPN", "PUNCT"]
    assert second.dep == ["root"]


def test_a_lone_underscore_is_no_tag() -> None:
    (sentence,) = read(rows("1 他 _ r _ _", "2 _ _ _ SBV NER=_"))
    assert sentence.words == ["他", "_"]
    assert sentence.pos == ["r", None]
    assert sentence.dep == [None, "SBV"]
    assert sentence.ner is None


def test_text_is_put_together_where_there_is_none() -> None:
    lines = ["1 Hi X x d _", "2 中 X x d SpaceAfter=No", "3 国 X x d _"]
    assert read(rows(*lines))[0].text == "Hi 中国"
    assert read(rows("# text = Hi中国", *lines))[0].text == "Hi中国"
    annotator = ConlluAnnotator()
    blocks = annotator.sentences(rows("# text = 别的", *lines))
    assert next(annotator.annotate([(0, blocks[0])])).text == "Hi 中国"
    assert annotator.counts == {"conllu text comment that its words do not fit": 1}


def test_ranges_and_empty_nodes() -> None:
    annotator = ConlluAnnotator()
    text = rows(
        "# text = dámelo del mar",
        "1-3 dámelo _ _ _ _",
        "1 dá VERB v root _",
        "2 me PRON r iobj _",
        "3 lo PRON r obj _",
        "4-5 del _ _ _ _",
        "4 de ADP p case _",
        "5 el DET d det _",
        "5.1 fue VERB v _ _",
        "6 mar NOUN n nmod _",
    )
    (sentence,) = annotator.annotate((0, block) for block in annotator.sentences(text))
    assert sentence.words == ["dá", "me", "lo", "del", "mar"]
    assert sentence.pos == ["v", "r", "r", None, "n"]
    assert sentence.dep == ["root", "iobj", "obj", None, "nmod"]
    assert sentence.text == "dámelo del mar"
    assert annotator.counts == {"conllu multiword token that is not its words joined": 1}
    (rebuilt,) = read(text.partition("\n")[2])
    assert rebuilt.text == "dámelo del mar"


def test_line_ends_and_blank_lines_of_any_kind() -> None:
    text = "\n\n" + CAME.replace("\n", "\r\n") + "\r\n \r\n\n# only a comment\n\n"
    assert read(text) == read(CAME)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t他\n", r"line 1: 2 columns where CoNLL-U has 10.*'1\\t他'"),
        (CAME + "2 好 a\n", "line 9: 1 columns"),
        (rows("x 他 r r d _"), "line 1: ID 'x' is no number"),
        (rows("1 他 r r d _", "3 来 r r d _"), "line 2: ID 3 where 2 is next"),
        (rows("# c", "1  r r d _".replace("  ", " \x00 ").replace("\x00", "")), "line 2: FORM"),
        (rows("1-1 他 r r d _", "1 他 r r d _", "2-1 他 r r d _"), "line 3: the range 2-1"),
        (rows("1-3 他们 _ _ _ _", "1 他 r r d _", "", "1 好 r r d _"), "line 3: .* inside a range"),
        (rows("1-3 他们 _ _ _ _", "1 他 r r d _"), "inside a range that goes to word 3"),
    ],
)
def test_a_malformed_line_is_named(text: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        ConlluAnnotator().sentences(text)


def test_text_without_sentences_has_none() -> None:
    assert ConlluAnnotator().sentences("") == []
    assert ConlluAnnotator().sentences("# a comment\n\n") == []


@pytest.mark.skipif(not TREEBANK.is_file(), reason="../shared/data/treebank is not here")
@pytest.mark.parametrize("column", ["xpos", "upos"])
def test_a_treebank_is_read_whole_with_its_own_tags(column: str) -> None:
    text = TREEBANK.read_text("utf-8")
    config = AnnotatorConfig(kind="conllu", pos_column=column, tag_sets="collect")
    tag_sets = resolve_tag_sets(config, [text])
    assert {task: len(tags) for task, tags in tag_sets.items()} == {
        "pos": 37 if column == "xpos" else 16,
        "ner": 0,
        "dep": 40,
    }
    assert tag_sets["dep"][:3] == ["nmod", "punct", "nsubj"]  # the commonest first
    annotator = make_annotator(config, tag_sets)
    annotated = list(annotator.annotate((0, block) for block in annotator.sentences(text)))
    assert len(annotated) == text.count("# sent_id") == 500
    assert sum(len(sentence.words) for sentence in annotated) == 12_663
    assert not annotator.counts
    for sentence in annotated:
        assert f"# text = {sentence.text}\n" in text
        assert locate_words(sentence.text, sentence.words) is not None
        assert sentence.pos is not None
        assert None not in sentence.pos
        assert sentence.dep is not None
        assert None not in sentence.dep


def test_the_sample_has_ltp_tags_alone() -> None:
    config = AnnotatorConfig(kind="conllu")
    annotator = make_annotator(config, resolve_tag_sets(config, []))
    blocks = annotator.sentences(SAMPLE.read_text("utf-8"))
    annotated = list(annotator.annotate((0, block) for block in blocks))
    assert len(annotated) >= 40
    assert not annotator.counts
    for sentence in annotated:
        for task in TASKS:
            assert set(getattr(sentence, task)) <= set(LTP_TAGS[task])
