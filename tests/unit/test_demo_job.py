"""The demo's training job: its environment, its files, and what it shows of its logs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from conftest import SOURCES
from paddle_exporter.demo import job as job_module
from paddle_exporter.demo.job import Job, Moment
from paddle_exporter.demo.stack import tail
from paddle_exporter.targets import write_target


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A job whose launcher ends at once, and how it was started."""
    seen = {}

    def spawn(command, log, **options):
        seen.update(options, command=command)
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])

    monkeypatch.setattr(job_module.processes, "spawn", spawn)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "5")
    monkeypatch.setenv("PADDLE_EXPORTER_PORT", "9810")
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    targets = tmp_path / "targets"
    targets.mkdir()
    with Job("digits", 3, "nan", tmp_path, targets) as job:
        yield job, seen


def test_how_it_is_started(started, tmp_path):
    _, seen = started
    command = seen["command"]
    assert command[:5] == [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "3"]
    assert command[command.index("--fault") + 1] == "nan"
    environment = seen["environment"]
    assert {name: value for name, value in environment.items() if name.startswith("PADDLE_")} == {
        "PADDLE_EXPORTER_RUN": "digits",
        "PADDLE_EXPORTER_PAGE_DIR": str(tmp_path / "pages"),
        "PADDLE_EXPORTER_TARGETS_DIR": str(tmp_path / "targets"),
        "PADDLE_EXPORTER_ADDRESS": "127.0.0.1",
        "PADDLE_EXPORTER_PORT": "0",
        "PADDLE_EXPORTER_LINGER": "5",
    }
    assert environment["PYTHONPATH"] == f"{SOURCES}:/theirs"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert (tmp_path / "pages").stat().st_mode & 0o777 == 0o700


def test_its_end_and_the_moment_of_its_fault(started, tmp_path):
    job, _ = started
    job._process.wait()
    assert (job.running, job.status, job.fault) == (False, 3, None)
    (tmp_path / "fault.json").write_text(json.dumps({"time": 12.5, "rank": 2, "step": 7}))
    assert job.fault == Moment(12.5, 2, 7)


def test_where_the_ranks_serve(started, tmp_path):
    job, _ = started
    assert job.urls() == []
    for rank in (1, 0):
        write_target(tmp_path / f"targets/rank{rank}.json", "127.0.0.1", 4000 + rank, {"rank": str(rank)}, "page")
    assert job.urls() == ["http://127.0.0.1:4000/metrics", "http://127.0.0.1:4001/metrics"]


def test_the_launchers_dump_of_the_environment_is_not_shown(started, tmp_path):
    job, _ = started
    (tmp_path / "launcher.log").write_text("before\nenv {'TOKEN': 'secret'}\nafter\n")
    assert job.launcher_log() == "before\nafter"


def test_the_end_of_a_log(started, tmp_path):
    job, _ = started
    assert job.rank_log(0) == ""
    (tmp_path / "log").mkdir()
    (tmp_path / "log/workerlog.0").write_bytes(b"\xff\n" + b"line\n" * 100 + b"last\n")
    assert job.rank_log(0) == "\n".join(["line"] * 24 + ["last"])
    assert tail(tmp_path / "log/workerlog.0", 1) == "last"
