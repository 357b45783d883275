"""How rows of numbers are cut into blocks that share a scale."""

LARGEST_BLOCK = 32
"""Numbers that share a scale, at most."""


def blocks_of(width: int) -> int:
    """Return into how many blocks a row of `width` numbers is cut: equal ones, as large as may be.

    A width that has no divisor from 16 to 32 is one block.
    """
    sizes = range(LARGEST_BLOCK, LARGEST_BLOCK // 2 - 1, -1)
    return next((width // size for size in sizes if width % size == 0), 1)
