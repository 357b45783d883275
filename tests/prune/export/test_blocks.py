import pytest

from prune.export.blocks import LARGEST_BLOCK, blocks_of


@pytest.mark.parametrize(
    ("width", "blocks"), [(768, 24), (312, 12), (256, 8), (32, 1), (24, 1), (31, 1), (37, 1)]
)
def test_blocks_are_equal_and_not_small(width: int, blocks: int) -> None:
    assert blocks_of(width) == blocks
    assert width % blocks == 0
    assert blocks == 1 or 16 <= width // blocks <= LARGEST_BLOCK
