"""The linguistic tasks of LERT and their tags, in the order of the released head weights.

Source: `src/run_pretraining.py` of github.com/ymcui/LERT; its README asks not to change the order.
"""

from collections.abc import Mapping, Sequence

IGNORE_INDEX = 255
"""Class of a token whose tag is unknown: no loss, no metric. It fits the uint8 of a shard."""

TASKS: tuple[str, ...] = ("pos", "ner", "dep")
"""Part of speech, named entity, dependency relation; this order everywhere."""

LTP_TAGS: Mapping[str, tuple[str, ...]] = {
    "pos": tuple("n v wp u d a m p r ns c q nt nh nd j i b ni nz nl z k ws o h e %".split()),
    # Nh person, Ns place, Ni organisation; S a single word, B first, I inner, E last.
    "ner": tuple("O S-Ns S-Nh B-Ni E-Ni I-Ni S-Ni B-Ns E-Ns I-Ns B-Nh E-Nh I-Nh".split()),
    "dep": tuple("ATT WP ADV VOB SBV COO RAD HED POB CMP LAD FOB DBL IOB".split()),
}
"""LTP's tag sets, the default of every corpus and model: 28 POS, 13 NER, 14 DEP."""

TagSets = Mapping[str, Sequence[str]]
"""Task name to its tags; the place of a tag in its list is its class."""
