"""What a worker answers instead of an answer.

In a module of its own: a worker is `__main__` to itself, and a class of that is none to its parent.
"""

from typing import NamedTuple


class Failure(NamedTuple):
    """An exception, of which only the words cross the pipe: the user's to mend, or ours."""

    message: str
    is_user_error: bool
