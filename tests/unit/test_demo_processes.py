"""Nothing may survive the demo: processes end with their parent, on request, and by the mark they carry."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from conftest import SOURCES
from paddle_exporter.demo import processes

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def gone(pid, seconds=5.0):
    """Whether the process ends in time; a zombie has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def wait_for(path, seconds=10.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} stayed empty")


@pytest.mark.parametrize("survive", [False, True])
def test_a_child_ends_with_its_parent_even_if_that_is_killed(tmp_path, survive):
    script = (
        "import sys, time; from pathlib import Path; from paddle_exporter.demo.processes import spawn\n"
        f"child = spawn(['sleep', '60'], Path(sys.argv[1]) / 'log', survive={survive})\n"
        "(Path(sys.argv[1]) / 'pid').write_text(str(child.pid)); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": SOURCES})
    pid = int(wait_for(tmp_path / "pid"))
    parent.kill()
    parent.wait()
    try:
        assert gone(pid, 0.5 if survive else 5.0) is not survive
    finally:
        if survive:
            os.kill(pid, signal.SIGKILL)


def test_a_child_that_ignores_sigterm_is_killed(tmp_path):
    child = processes.spawn([sys.executable, "-c", STUBBORN], tmp_path / "log")
    wait_for(tmp_path / "log")
    processes.end(child, patience=0.3)
    assert child.returncode == -signal.SIGKILL


def test_a_child_that_listens_ends_at_once(tmp_path):
    child = processes.spawn(["sleep", "60"], tmp_path / "log")
    processes.end(child)
    assert child.returncode == -signal.SIGTERM
    processes.end(child)  # it has ended: nothing to do


def test_who_listens_on_a_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert not processes.listens(os.getpid(), port)
        listener.listen()
        assert processes.listens(os.getpid(), port)
        assert not processes.listens(os.getppid(), port)
        assert not processes.listens(os.getpid(), port + 1)


def test_orphans_are_found_by_their_mark(tmp_path):
    environment = {**os.environ, "DEMO_MARK": str(tmp_path)}
    command = ["sh", "-c", f"setsid sleep 60 & echo $! > {tmp_path}/pid"]  # its parent ends, its session is its own
    processes.spawn(command, tmp_path / "log", environment=environment).wait()
    pid = int(wait_for(tmp_path / "pid"))
    deadline = time.monotonic() + 10
    while pid not in processes.marked("DEMO_MARK", str(tmp_path)):  # in the middle of its exec it has no environment
        assert time.monotonic() < deadline
    assert not processes.marked("DEMO_MARK", str(tmp_path)[:-1])
    processes.kill_marked("DEMO_MARK", str(tmp_path))
    assert gone(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_become_an_exception_that_cleaning_up_is_not_disturbed_by(number):
    original = signal.signal(number, signal.SIG_DFL)
    with processes.ended_by_signals():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        with processes.undisturbed():
            os.kill(os.getpid(), number)
    assert signal.signal(number, original) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored():
    original = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with processes.ended_by_signals():
        signal.raise_signal(signal.SIGHUP)
    assert signal.signal(signal.SIGHUP, original) is signal.SIG_IGN
