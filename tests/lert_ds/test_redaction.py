"""Secrets are not shown; what only looks a little like one is."""

import logging
from pathlib import Path

import pytest

from lert_ds.redaction import RedactingFormatter, redact, redact_tree

SECRET = "s3cret-value"


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"),
        *("DB_PASSWORD", "db_passwd", "GITHUBTOKEN", "APP_SECRET", "ARTIFACTS_CREDENTIALS"),
    ],
)
def test_values_of_the_environment_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert redact(f"401 for {SECRET}, again {SECRET}") == f"401 for [{name}], again [{name}]"


@pytest.mark.parametrize("name", ["XKB_KEYBOARD", "TOKENIZERS_PARALLELISM", "KEYS_OF", "PATH_X"])
def test_other_variables_are_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert redact(SECRET) == SECRET


def test_short_values_and_paths_are_no_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("USE_TOKEN", "true")
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    assert redact(f"true {tmp_path}/id_ed25519") == f"true {tmp_path}/id_ed25519"


def test_the_longer_of_two_secrets_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-ijkl")
    assert redact("abcdefgh-ijkl abcdefgh") == "[B_TOKEN] [A_TOKEN]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@hub.example/a", "https://[…]@hub.example/a"),
        ("ssh://git@host/a and ftp://u:p@x", "ssh://[…]@host/a and ftp://[…]@x"),
        ("https://host/a@b", "https://host/a@b"),
        ("me@example.com", "me@example.com"),
        ("hf_AbCdEfGhIjKlMnOpQrStUv", "[hf_…]"),
        ("token=ghp_0123456789abcdefABCDEF0123456789abcd.", "token=[ghp_…]."),
        ("hf_short half_of_everything_in_this_text", "hf_short half_of_everything_in_this_text"),
        ("/data/sk-learn-datasets-2024/hf_my_folder", "/data/sk-learn-datasets-2024/hf_my_folder"),
    ],
)
def test_texts_that_hold_one_by_their_form(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_values_of_a_tree_are_hidden_and_its_keys_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    tree = {SECRET: [1, None, {"a": f"x{SECRET}", "b": (SECRET, 2.5)}]}
    assert redact_tree(tree) == {SECRET: [1, None, {"a": "x[MY_TOKEN]", "b": ["[MY_TOKEN]", 2.5]}]}


def test_a_record_and_its_traceback_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "sent %s", (SECRET,), info)
    text = RedactingFormatter("%(message)s").format(record)
    assert text.startswith("sent [MY_TOKEN]\nTraceback")
    assert text.endswith("ValueError: [MY_TOKEN]")
