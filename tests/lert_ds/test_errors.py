"""One family of exceptions is the user's; the command line tells them by it."""

import inspect

from lert_ds import errors


def test_every_error_of_the_module_is_the_users() -> None:
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    assert {kind.__name__ for kind in classes} == {
        "UserError",
        "ConfigError",
        "CorpusError",
        "ModelError",
        "CheckpointError",
    }
    for kind in classes:
        assert issubclass(kind, errors.UserError)
        assert issubclass(kind, ValueError)  # a caller of the library may expect just that
        assert str(kind("a sentence")) == "a sentence"
