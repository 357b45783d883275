from lert_ds.doctor.row import Row, fold


def test_what_differs_in_the_host_alone_is_one_row_where_the_first_stood() -> None:
    rows = [
        Row("ops", "OK", "built", hosts=("a",)),
        Row("ops", "FAIL", "no ninja", "install it", ("b",)),
        Row("ops", "OK", "built", hosts=("c",)),
        Row("ops", "OK", "built", hosts=("a",)),
    ]
    assert fold(rows) == [
        Row("ops", "OK", "built", hosts=("a", "c")),
        Row("ops", "FAIL", "no ninja", "install it", ("b",)),
    ]


def test_rows_about_no_host_stay_apart() -> None:
    rows = [Row("configuration", "FAIL", "one"), Row("configuration", "FAIL", "other")]
    assert fold(rows) == rows
