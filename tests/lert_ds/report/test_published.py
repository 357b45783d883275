"""The published figures: every one in the form of its task, anchors digit by digit, no gaps."""

import re

from lert_ds.finetune.tasks import TASKS
from lert_ds.report.published import (
    ELECTRA,
    LERT,
    MACBERT,
    MINIRBT,
    MODELS,
    TRAIN_EXAMPLES,
    Column,
    published,
)

NUMBER = r"\d\d(\.\d{1,2})?"
SCORE = rf"({NUMBER}( \({NUMBER}\))?|\({NUMBER}\))"


def test_every_figure_has_the_metrics_of_its_task() -> None:
    for model, figures in published().items():
        assert figures, model
        for column, figure in figures.items():
            parts = figure.text.split(" / ")
            assert len(parts) == len(TASKS[column.task].metrics), (model, column)
            assert all(re.fullmatch(SCORE, part) for part in parts), (model, column, figure.text)
            assert figure.source.url.startswith("https://github.com/")
            assert re.fullmatch(r"[0-9a-f]{7}", figure.source.commit)


def test_a_best_is_never_below_its_mean_and_em_never_above_f1() -> None:
    """A figure that was typed wrong, or in the wrong order, shows."""
    for model, figures in published().items():
        for column, figure in figures.items():
            pairs = re.findall(r"([\d.]*) ?(?:\(([\d.]+)\))?(?: / |$)", figure.text)[:2]
            for best, mean in pairs:
                assert not best or not mean or float(best) >= float(mean), (model, column)
            if len(TASKS[column.task].metrics) == 2:
                em, f1 = (float(best or mean) for best, mean in pairs)
                assert em < f1, (model, column)


def test_the_sources_that_have_a_cell_both_agree() -> None:
    """CSC is ChnSentiCorp's test set: LERT's table has the bests of Chinese-ELECTRA's there."""
    csc = Column("chnsenticorp", "test")
    assert published()["ELECTRA-small"][csc].text == "94.3 (93.5)"
    assert published()["LERT-small"][csc] == ("94.0", LERT)


def test_anchors() -> None:
    figures = published()
    assert figures["LERT-base"][Column("cmrc2018", "dev")] == ("69.2 (68.4) / 88.1 (87.9)", LERT)
    assert figures["LERT-large"][Column("msra", "test")].text == "96.3 (96.0)"
    assert figures["MacBERT-base"][Column("drcd", "test")] == ("89.5 (88.7) / 93.8 (93.5)", MACBERT)
    assert figures["RBT3"][Column("xnli", "test")] == ("72.3", ELECTRA)
    # F1 / EM in its source.
    assert figures["MiniRBT-H256"][Column("cmrc2018", "dev")] == ("(56.27) / (78.47)", MINIRBT)
    assert figures["RoBERTa-wwm-ext"][Column("chnsenticorp", "dev")] == ("94.9 (94.6)", LERT)


def test_every_model_stands_in_one_group_and_every_task_has_its_size() -> None:
    models = [model for group in MODELS.values() for model in group]
    assert sorted(models) == sorted(set(models)) == sorted(published())
    assert TRAIN_EXAMPLES.keys() == TASKS.keys()
