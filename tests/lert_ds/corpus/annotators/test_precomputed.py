import pytest
from hypothesis import given
from hypothesis import strategies as st

from lert_ds.corpus.annotators.precomputed import PrecomputedAnnotator
from lert_ds.corpus.sentence import AnnotatedSentence
from lert_ds.errors import CorpusError

GOOD = '{"words": ["他", "来"], "pos": ["r", null]}'


def test_lines_become_sentences() -> None:
    annotator = PrecomputedAnnotator()
    lines = annotator.sentences(GOOD + "\r\n\n" + GOOD + "\n")
    assert len(lines) == 2
    (first, second) = annotator.annotate([(4, lines[0]), (5, lines[1])])
    assert first == AnnotatedSentence(text="他来", words=["他", "来"], pos=["r", None], doc=4)
    assert second.doc == 5


@given(st.text(min_size=1).filter(lambda text: not text.isspace()))
def test_what_was_kept_is_read_again(text: str) -> None:
    word = text.strip().replace("\ud800", "").encode("utf-8", "ignore").decode("utf-8")
    sentence = AnnotatedSentence(text=f" {word}字 ", words=[word + "字"], ner=["O"], doc=3)
    annotator = PrecomputedAnnotator()
    kept = sentence.to_json().decode("utf-8")
    (line,) = annotator.sentences(kept)
    assert next(annotator.annotate([(3, line)])) == sentence


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not an annotated sentence"),
        ('["他"]', "line 2: not an annotated sentence"),
        ('{"text": "他"}', "line 2: not an annotated sentence"),
        ('{"words": ["他"], "pos": []}', "line 2: 1 words but 0 pos tags"),
        ('{"words": ["他"], "dep": [3]}', "line 2: dep must be null or a list"),
        ('{"words": ["他"], "ner": "O"}', "line 2: ner must be null or a list"),
        ('{"words": ["他", ""]}', "line 2: every word must be a string that is not blank"),
        ('{"words": "他"}', "line 2: text must be a string and words a list"),
        ('{"text": 3, "words": []}', "line 2: text must be a string"),
        ('{"text": "他走了", "words": ["他", "了"]}', "line 2: its words do not stand in its text"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        PrecomputedAnnotator().sentences(GOOD + "\n" + line)
