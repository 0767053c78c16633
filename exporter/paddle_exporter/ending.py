"""How a process ends, and that the run's page says so: exceptions, SIGTERM, the interpreter's end, a fork.

SIGTERM is not handled in Python: such a handler runs only when the main thread gets back to Python code, so a
rank that hangs in a collective would no longer die of it. faulthandler's C handler writes the stack into a file
beside the page at once, also while the GIL is held, and then does what would have been done without it.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Callable

from .page import SIGTERM_SUFFIX

if TYPE_CHECKING:
    from .run import Run

_current: Callable[[], Run | None] | None = None
_watching = False
_marker: IO[str] | None = None


def judge(error: BaseException | None) -> tuple[str, dict[str, str]]:
    """The state a run ends in when ``error`` leaves it, and facts about that for paddle_run_info."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished", {}
    if isinstance(error, KeyboardInterrupt):
        return "killed", {"signal": "SIGINT"}
    return "failed", {"exception": type(error).__name__}


def watch(current: Callable[[], Run | None]) -> None:
    """End the run that ``current`` returns when the process ends. Done once a process."""
    global _watching, _current
    _current = current
    if _watching:
        return
    _watching = True
    previous = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
        previous(kind, error, trace)  # first the user's traceback, then our wait for a scrape
        run = current()
        if run is not None:
            state, facts = judge(error)
            run.finish(state, **facts)

    sys.excepthook = excepthook
    atexit.register(_at_exit)
    os.register_at_fork(after_in_child=_after_fork)


def mark_sigterm(page: Path) -> None:
    """From now on a SIGTERM leaves the main thread's stack beside ``page``; a file that is not empty says it came.

    Called again when Paddle was imported after the start: it has a handler of its own, which ours must come before.
    """
    global _marker
    if threading.current_thread() is not threading.main_thread() or not hasattr(faulthandler, "register"):
        return
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        marker = os.fdopen(os.open(page.with_suffix(SIGTERM_SUFFIX), flags, 0o600), "w")
        handler = signal.getsignal(signal.SIGTERM)
        faulthandler.unregister(signal.SIGTERM)
        if handler not in (None, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, handler)  # the user's, put in place since then
        faulthandler.register(signal.SIGTERM, file=marker, all_threads=False, chain=True)
        _marker = marker


@contextlib.contextmanager
def holding_sigterm() -> Iterator[None]:
    """A SIGTERM that comes inside has its effect afterwards: the launcher ends the others when one rank is gone.

    For moments in which the main thread is in Python and nothing can hang. Elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
        if came:
            os.kill(os.getpid(), signal.SIGTERM)


def _at_exit() -> None:
    run = _current() if _current else None
    if run is not None:
        run.finish()


def _after_fork() -> None:
    run = _current() if _current else None
    if run is not None:
        run.abandon()
    if _marker is not None:
        # The child's SIGTERM (DataLoader workers get one at each epoch's end) is not the rank's.
        with contextlib.suppress(OSError, ValueError):
            faulthandler.register(signal.SIGTERM, file=os.open(os.devnull, os.O_WRONLY), all_threads=False, chain=True)
