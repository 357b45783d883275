"""Tokens and passwords stay out of what is logged, written and sent.

    HF_TOKEN=hf_abc…                  →  [HF_TOKEN] wherever the value stands
    https://user:password@host/…      →  https://[…]@host/…
    hf_0123456789abcdef0123           →  [hf_…], also where no variable holds it

Only values of the environment can be known as secret. Names of files that are there are no secrets.
"""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:\w*TOKEN|\w*APIKEY|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH)S?$",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 8
"""Characters: shorter values, as true or 1, stand in any text."""
_USER_IN_URL = re.compile(r"(?<=://)[^\s/@'\"<>]+@")
_TOKEN = re.compile(r"\b(hf_|ghp_|gho_|ghs_|github_pat_|sk-)[A-Za-z0-9]{16,}[A-Za-z0-9_]*")


def redact(text: str) -> str:
    """Return `text` without what must not be seen."""
    for name, value in _secrets().items():
        if value in text:
            text = text.replace(value, f"[{name}]")
    if "://" in text:
        text = _USER_IN_URL.sub("[…]@", text)
    return _TOKEN.sub(lambda match: f"[{match[1]}…]", text)


def redact_tree(tree: Any) -> Any:
    """Return JSON values with every text in them redacted, keys aside."""
    if isinstance(tree, str):
        return redact(tree)
    if isinstance(tree, Mapping):
        return {key: redact_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redact_tree(value) for value in tree]
    return tree


class RedactingFormatter(logging.Formatter):
    """Formats a record, its traceback too, without what must not be seen."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return redact(super().format(record))


def _secrets() -> dict[str, str]:
    """Return name and value of the environment's secrets, the longest first."""
    found = {
        name: value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_SECRET
        and _SECRET_NAME.search(name)
        and not (value.startswith(("/", "~")) and Path(value).expanduser().exists())
    }
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
