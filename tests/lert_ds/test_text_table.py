from lert_ds.text_table import columns_of, markdown_table


def test_a_han_character_takes_two_columns() -> None:
    assert [columns_of(text) for text in ("", "ab", "字", "a字，")] == [0, 2, 2, 5]


def test_columns_are_aligned_whatever_the_script() -> None:
    assert markdown_table([["", "x"], ["模型", "95.1"], ["a", "7"]]) == [
        "|      |    x |",
        "| :--- | ---: |",
        "| 模型 | 95.1 |",
        "| a    |    7 |",
    ]
