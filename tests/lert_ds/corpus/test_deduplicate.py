"""The first of equal sentences is kept, whatever the runs, the buckets and their number."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lert_ds.corpus import deduplicate
from lert_ds.corpus.deduplicate import compare, content_of, dropped, sign


@settings(max_examples=60, deadline=None)
@given(
    tasks=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), min_size=1, max_size=4),
    buckets=st.integers(1, 3),
    run=st.integers(1, 5),
)
def test_first_in_the_order_of_the_plan(
    tmp_path_factory: pytest.TempPathFactory, tasks: list[list[str]], buckets: int, run: int
) -> None:
    folder = tmp_path_factory.mktemp("d")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deduplicate, "_RUN_SENTENCES", run)
        patch.setattr(deduplicate, "_COMPARED_SENTENCES", run)
        for task in reversed(range(len(tasks))):  # whoever comes first
            assert sign(tasks[task], folder / "s", task) == len(tasks[task])
        for bucket in reversed(range(buckets)):
            compare(folder / "s", folder / "d", bucket, buckets)
    seen: set[str] = set()
    for task, sentences in enumerate(tasks):
        expected = []
        for sentence in sentences:
            expected.append(sentence in seen)
            seen.add(sentence)
        assert dropped(folder / "d", task, len(sentences)).tolist() == expected


def test_signing_again_replaces_what_an_interrupted_task_left(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deduplicate, "_RUN_SENTENCES", 1)
        sign("abc", tmp_path / "s", 0)
    sign("ab", tmp_path / "s", 0)
    assert len(list((tmp_path / "s").glob("*.hash.npy"))) == 1
    compare(tmp_path / "s", tmp_path / "d", 0, 1)
    assert np.array_equal(dropped(tmp_path / "d", 0, 2), [False, False])


def test_what_makes_sentences_the_same() -> None:
    assert content_of(" 你 好。\n", "jieba") == content_of("你好。", "jieba")
    one = "# sent_id = 1\n1\t你\t_\n2\t好\t_"
    other = "# sent_id = 2\n1\t你\tx\n2\t好\ty"
    assert content_of(one, "conllu") == content_of(other, "conllu") == "你好"
    assert content_of('{"words": ["你", "好"], "doc": 3}', "precomputed") == "你好"
