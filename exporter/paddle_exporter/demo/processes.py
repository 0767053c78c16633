"""Child processes that end when they should, whatever happens to this one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_libc = ctypes.CDLL(None) if os.name == "posix" else None


def spawn(
    command: list[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    survive: bool = False,
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own, its output going to ``log``.

    A Ctrl-C at the terminal is then ours alone. Unless it may ``survive``, the kernel sends it a SIGTERM when this
    process dies, also of SIGKILL. To be called from the main thread: the kernel means the thread by "parent".
    """
    parent = os.getpid()

    def end_with_parent() -> None:
        if _libc is not None and hasattr(_libc, "prctl"):
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            cwd=folder,
            start_new_session=True,
            preexec_fn=None if survive else end_with_parent,  # noqa: PLW1509 - there is no other thread
        )


def end(process: subprocess.Popen[bytes], patience: float = 8.0) -> None:
    """SIGTERM, and SIGKILL to its whole process group if it has not ended after ``patience`` seconds."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def listens(pid: int, port: int) -> bool:
    """Whether the process ``pid`` itself takes connections on ``port`` of an IPv4 address."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry) in sockets:
                return True
    return False


def marked(variable: str, value: str) -> list[int]:
    """Processes of ours that were started with ``variable`` set to ``value``: also those whose parents are gone."""
    wanted = f"{variable}={value}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended, or somebody else's
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def kill_marked(variable: str, value: str, patience: float = 5.0) -> None:
    """SIGKILL to those that are ``marked``, until none is left."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        pids = marked(variable, value)  # a zombie has no environment any more
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end this process as Ctrl-C does: by an exception, so that cleaning up happens.

    What is ignored already (by nohup, by a shell's &) stays so.
    """

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    heeded = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        _restore(previous.items())


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within, a second Ctrl-C does not stop the cleaning up."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        _restore(previous.items())


def _restore(handlers: Iterable[tuple[signal.Signals, object]]) -> None:
    for number, handler in handlers:
        signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself returned
