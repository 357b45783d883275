import pytest

from lert_ds.training_benchmark import largest
from lert_ds.training_benchmark.largest import LIMIT, largest_micro_batch


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 100, 1000, LIMIT, 10 * LIMIT])
def test_it_fits_and_an_eighth_more_does_not(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    asked = []

    def fits(engine: object, data: object, instances: int, length: int) -> bool:
        asked.append(instances)
        return instances <= most

    monkeypatch.setattr(largest, "_fits", fits)
    found = largest_micro_batch(None, None, 512)  # type: ignore[arg-type]
    assert found <= most
    assert found + max(1, found // 8) >= min(most, LIMIT)
    assert len(asked) == len(set(asked)) < 30
