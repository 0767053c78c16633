"""The demo as people run it: real Paddle, Prometheus, Alertmanager; healthy and with each fault; nothing survives."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from conftest import SOURCES

pytestmark = pytest.mark.paddle


@pytest.fixture(autouse=True, scope="module")
def _all_parts():
    """A skip, or with CI=true a failure, where a part of the demo is missing."""
    missing = [name for name in ("paddle", "sklearn", "yaml", "rich") if importlib.util.find_spec(name) is None]
    missing += [] if shutil.which("prometheus") else ["prometheus"]
    missing += [] if shutil.which("prometheus-alertmanager") or shutil.which("alertmanager") else ["alertmanager"]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"the demo cannot run without {', '.join(missing)}")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


class Demo:
    """``paddle-exporter demo`` as a process, all of whose traces are in ``folder``."""

    def __init__(self, folder, *arguments, python_path=()):
        self.folder = folder
        self.report_file = folder / "report.json"
        (folder / "tmp").mkdir()
        environment = {
            **os.environ,
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": os.pathsep.join([*python_path, SOURCES]),
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-m", "paddle_exporter.cli", "demo", "--report", str(self.report_file), *arguments]
        self._output = (folder / "output").open("w")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment,
            # a shell's & ignores it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    @property
    def output(self):
        return (self.folder / "output").read_text()

    def said(self, pattern, seconds=60):
        """Wait until it says something; returns the match."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            match = re.search(pattern, self.output)
            if match:
                return match
            assert self.process.poll() is None, self.output
            time.sleep(0.05)
        raise AssertionError(f"{pattern} was not said in {seconds} s:\n{self.output}")

    def wait(self, seconds=150):
        """Its exit status."""
        return self.process.wait(seconds)

    @property
    def report(self):
        assert self.report_file.exists(), self.output
        return json.loads(self.report_file.read_text())

    def processes(self):
        """Every process that it left, or its ranks, or its servers: they all know its temporary folder."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                known = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                if str(self.folder).encode() in known:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
        return found

    def left(self, seconds=0.0):
        """Those that are still there after so many seconds."""
        deadline = time.monotonic() + seconds
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.processes()

    def close(self):
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._output.close()


@pytest.fixture
def demo(tmp_path):
    """Start a demo; whatever it leaves is killed in the end."""
    started = []

    def start(*arguments, **options):
        started.append(Demo(tmp_path, *arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


def check_report(report, fault):
    """Its form, and what is true of every run of the demo."""
    assert set(report) == {"ranks", "fault", "alerts", "series", "scrape_seconds", "training_seconds"}
    assert [rank["rank"] for rank in report["ranks"]] == [0, 1]
    for rank in report["ranks"]:
        assert set(rank) == {"rank", "steps", "samples_per_second", "loss", "accuracy"}
        assert rank["samples_per_second"] > 10
        assert 0 < rank["loss"] < 2
        assert rank["accuracy"] > 0.9
    assert report["fault"] == fault
    assert 2 * 50 < report["series"] < 2 * 100
    assert 0 < report["scrape_seconds"] < 1
    for alert in report["alerts"]:
        assert set(alert) == {"name", "run", "rank", "seconds_after_fault"}
        assert alert["run"].startswith("digits-demo-")


def seconds_after(report, names, rank):
    """When the first alert of such a name named the rank."""
    seconds = [a["seconds_after_fault"] for a in report["alerts"] if a["name"] in names and a["rank"] == rank]
    assert seconds, report["alerts"]
    return min(seconds)


def test_a_healthy_run_learns_and_alerts_nobody(demo):
    healthy = demo()
    assert healthy.wait() == 0, healthy.output
    report = healthy.report
    check_report(report, None)
    assert report["alerts"] == []
    steps = {rank["steps"] for rank in report["ranks"]}
    assert len(steps) == 1
    assert min(steps) > 500
    assert all(rank["accuracy"] >= 0.95 for rank in report["ranks"])
    assert 8 < report["training_seconds"] < 90
    assert "All as it should be: no alert." in healthy.output
    assert not healthy.left()
    assert list((healthy.folder / "tmp").iterdir()) == []


def test_a_nan_is_alerted_for_the_rank_that_has_it(demo):
    sick = demo("--fault", "nan")
    assert sick.wait() == 0, sick.output
    report = sick.report
    check_report(report, {"kind": "nan", "rank": 1})
    assert 0 <= seconds_after(report, {"LossNonFinite"}, 1) < 10
    assert not [alert for alert in report["alerts"] if alert["rank"] == 0 and alert["name"] == "LossNonFinite"]
    assert all(rank["accuracy"] >= 0.95 for rank in report["ranks"]), "updates with a NaN were skipped"
    assert not sick.left()


def test_a_hang_is_alerted_while_it_lasts(demo):
    hung = demo("--fault", "hang")
    assert hung.wait() == 0, hung.output
    report = hung.report
    check_report(report, {"kind": "hang", "rank": 1})
    assert 15 <= seconds_after(report, {"TrainingStalled"}, 1) < 27
    assert "rank 1: running, in data" in hung.output, "the table says where each rank is"
    assert "rank 0: running, in communication" in hung.output
    assert not hung.left()


def test_a_killed_rank_is_alerted_and_its_last_values_are_kept(demo):
    crashed = demo("--fault", "crash", "--keep")
    assert crashed.wait() == 0, crashed.output
    report = crashed.report
    check_report(report, {"kind": "crash", "rank": 1})
    assert 0 <= seconds_after(report, {"RankMissing", "RunFailed"}, 1) < 15
    step = int(re.search(r"Fault: crash in rank 1 at step (\d+)", crashed.output)[1])
    killed = report["ranks"][1]
    assert killed["steps"] == step, "the page has the last step before the kill"
    assert re.search(rf"│ +1 │ vanished │ +{step}/", crashed.output)

    # --keep: both servers are there, Prometheus with the series of the dead, and the command that was told ends them
    prometheus = re.search(r"Prometheus (http://\S+) and Alertmanager (http://\S+) go on running", crashed.output)[1]
    assert 0 <= step - value(prometheus, "paddle_train_steps_total") < 200, "at most a scrape interval is missing"
    assert 0 < value(prometheus, "paddle_train_loss") < 2
    assert value(prometheus, 'paddle_run_state{state="running"}') == 1
    left = crashed.left()
    assert len(left) == 2, left
    command = re.search(r"^  (kill .*; rm -r .*)$", crashed.output, re.MULTILINE)[1]
    subprocess.run(command, shell=True, check=True)
    assert not crashed.left(seconds=10)
    assert list((crashed.folder / "tmp").iterdir()) == []


def value(prometheus, series):
    """What Prometheus last knew of a series of rank 1."""
    query = urllib.parse.urlencode({"query": f"last_over_time({series}[10m])"})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?{query}", timeout=10) as answer:
        result = json.load(answer)["data"]["result"]
    (found,) = [float(one["value"][1]) for one in result if one["metric"]["rank"] == "1"]
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_demo_ends_everything(demo, number):
    stopped = demo("--keep")  # which is for a demo that comes to its end
    stopped.said(r"rank 1: running, step [1-9]")
    assert len(stopped.processes()) >= 6, "the demo, two servers, the launcher, two ranks"
    stopped.process.send_signal(number)
    assert stopped.wait(30) == 130
    assert not stopped.left()
    assert "Stopped; nothing is left running." in stopped.output
    assert list((stopped.folder / "tmp").iterdir()) == []


def test_nothing_survives_a_demo_that_is_killed(demo):
    killed = demo()
    killed.said(r"rank 1: running, step [1-9]")
    killed.process.kill()
    assert not killed.left(seconds=15)


def test_a_rank_that_fails_ends_the_demo_with_the_end_of_its_log(demo, tmp_path):
    stub = tmp_path / "stub/sklearn"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise RuntimeError('no digits today')\n")
    failed = demo(python_path=[str(stub.parent)])
    assert failed.wait(60) == 1
    assert "RuntimeError: no digits today" in failed.output
    assert "Not as it should be: training failed" in failed.output
    assert failed.report["ranks"] == []
    assert not failed.left()
