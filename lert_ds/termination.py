"""SIGTERM as an exception, so that a command that is told to end leaves nothing half-done.

Without it Python ends on the spot: no `finally` runs, so parts of files stay and workers go on.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

GRACE_SECONDS = 15
"""How long the orderly way may take; Slurm and Kubernetes send SIGKILL after 30 s."""
EXIT_CODE = 128 + signal.SIGTERM

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What asks a training to save and end; its workers do not heed them, what supervises it passes
them on."""


class Terminated(BaseException):
    """This process is told to end; not an `Exception`, so that nobody takes it for a failure."""


@contextlib.contextmanager
def orderly_termination() -> Iterator[None]:
    """Raise `Terminated` in the main thread where SIGTERM comes while the body runs.

    A second SIGTERM ends the process on the spot, as does the system after `GRACE_SECONDS`. A
    command that stops in its own way (a training saves first) sets its own handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    process = os.getpid()

    def terminate(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a fork of ours has this handler, but nobody to tell
            os._exit(EXIT_CODE)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_CODE))
        # No handler: Python's would wait for the call that hangs.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(GRACE_SECONDS)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        # Kept while it ends: the alarm, and the second signal, cover what is left of the process.
        if signal.getsignal(signal.SIGTERM) is terminate:
            signal.signal(signal.SIGTERM, before)
