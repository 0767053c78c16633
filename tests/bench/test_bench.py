"""The bench runs and says what it found; how fast anything is, is nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
BUDGETS = {
    ("step", "run.step(), 10 scalars", 1.0),
    ("step", "run.step(), 10 scalars", 0.5),
    ("step", "a bound step, 10 scalars", 4.0),
    ("import", "import paddle_exporter: time", 50.0),
    ("import", "import paddle_exporter: memory", 10.0),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "report.json"
    done = subprocess.run(
        [sys.executable, str(RUN), "--quick", "--only", "step,import,scrape", "--json", str(path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


def test_it_says_where_it_ran(report):
    assert {"python", "processor", "cpus", "quick", "lines"} <= set(report[0])
    assert report[0]["quick"] is True


def test_every_part_that_was_asked_for_has_lines(report):
    assert {line["part"] for line in report[0]["lines"]} == {"step", "phase", "import", "scrape"}


def test_every_line_is_a_measurement_or_says_why_not(report):
    for line in report[0]["lines"]:
        if line["skipped"]:
            assert line["median"] is None
        else:
            assert line["minimum"] <= line["median"]
            assert line["unit"] in ("us", "ms", "MB")
            assert (line["ratio"] is None) == (not line["reference"])


def test_only_what_others_make_is_skipped(report):
    skipped = [line["what"] for line in report[0]["lines"] if line["skipped"]]
    assert not [what for what in skipped if "paddle_exporter" in what or "prometheus_client" in what]


def test_budgets_are_judged(report):
    judged = [line for line in report[0]["lines"] if line["limit"] is not None]
    assert {(line["part"], line["what"], line["limit"]) for line in judged} == BUDGETS
    for line in judged:
        assert line["held"] is (line["excess"] <= 1.0)


def test_every_line_is_printed(report):
    for line in report[0]["lines"]:
        assert line["what"] in report[1]
    assert report[1].count("held") + report[1].count("missed by") == len(BUDGETS)


def test_a_part_there_is_not_is_refused():
    done = subprocess.run(
        [sys.executable, str(RUN), "--only", "nothing"], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "some of: step" in done.stderr
