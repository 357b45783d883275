"""`lert-ds doctor --serve`: answers questions about this host, a line of JSON each, until the end.

A question says what is asked and how long it may take: {"ask": "facts", "seconds": 60, …}. The
answers are those of `ANSWERS`; whatever goes wrong in one is an answer too.
"""

import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from lert_ds.doctor import facts, folders, network
from lert_ds.doctor.all_reduce import start_all_reduce

MARK = "lert-ds-doctor "
"""Opens a line that is ours; a shell's start-up files may print as well."""
READY = {"ready": True}
GRACE_SECONDS = 30
"""After this much more than a question may take, a process that nobody can stop ends itself."""

Question = Mapping[str, Any]


def answer(question: Question) -> dict[str, Any]:
    """Return the answer, or `{"error": …}` where it cannot be given."""
    try:
        return ANSWERS[question["ask"]](question)
    except Exception as error:  # noqa: BLE001 - told by the one that asked, with the host's name
        return {"error": f"{type(error).__name__}: {error}"}


def serve(questions: IO[str], answers: IO[str]) -> None:
    """Answer until `questions` ends."""
    _say(answers, READY)
    for line in questions:
        question = json.loads(line)
        # A host that hangs would outlive the connection that asked it.
        signal.alarm(int(question.get("seconds", 60)) + GRACE_SECONDS)
        _say(answers, answer(question))
        signal.alarm(0)
    network.stop_listening()


def serve_here() -> None:
    """Answer on standard input and output; what a library prints goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    serve(sys.stdin, answers)


def _say(stream: IO[str], tree: Mapping[str, Any]) -> None:
    stream.write(MARK + json.dumps(tree) + "\n")
    stream.flush()


ANSWERS: dict[str, Callable[[Question], dict[str, Any]]] = {
    "time": lambda question: {"seconds": time.time()},
    "facts": lambda question: facts.facts(),
    "output": lambda question: folders.output_facts(question["path"]),
    "write": lambda question: folders.write_mark(question["path"]),
    "see": lambda question: folders.see_mark(question["path"]),
    "remove": lambda question: folders.remove_mark(question["path"]),
    "files": lambda question: folders.missing(question["paths"]),
    "corpus": lambda question: folders.corpus_facts(question["folders"], question["seconds"]),
    "listen": lambda question: network.listen(question["port"]),
    "connect": lambda question: network.connect(question["to"], question["wait"]),
    "hush": lambda question: network.stop_listening(),
    "all_reduce": start_all_reduce,
}
