"""The tag lists are those of the released head weights, in their order."""

import hashlib

from lert_ds.labels import IGNORE_INDEX, LTP_TAGS, TASKS

# SHA-256 of the tags joined by blanks, of the lists in DESIGN and ymcui/LERT: the order maps to
# the rows of the released head weights, so a sorted or mended list would be a wrong label.
PUBLISHED = {
    "pos": (28, "n v wp u d a m p r ns", "ws o h e %"),
    "ner": (13, "O S-Ns S-Nh B-Ni E-Ni I-Ni", "I-Ns B-Nh E-Nh I-Nh"),
    "dep": (14, "ATT WP ADV VOB SBV COO RAD HED", "POB CMP LAD FOB DBL IOB"),
}


def test_the_lists_are_the_published_ones() -> None:
    assert tuple(LTP_TAGS) == TASKS == ("pos", "ner", "dep")
    for task, (count, first, last) in PUBLISHED.items():
        tags = " ".join(LTP_TAGS[task])
        assert len(LTP_TAGS[task]) == len(set(LTP_TAGS[task])) == count
        assert tags.startswith(first)
        assert tags.endswith(last)


def test_no_list_changes_unseen() -> None:
    text = "|".join(" ".join(LTP_TAGS[task]) for task in TASKS)
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "9466b4e97695fbf58578a905762512ca06e1defe63b95a65bcc8a88f3e617af9"
    )


def test_the_ignore_index_is_no_class_and_fits_a_shard() -> None:
    assert max(map(len, LTP_TAGS.values())) <= IGNORE_INDEX < 2**8
