"""Trainings from end to end are tested by their commands; here what they share and nothing more."""

from lert_ds import training


def test_a_result_says_what_it_was_made_with() -> None:
    found = training.versions()
    assert {"python", "lert-ds", "torch", "deepspeed", "transformers"} <= set(found)
