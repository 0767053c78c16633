"""What people see of the demo."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from paddle_exporter.demo.alerts import Alert
from paddle_exporter.demo.job import Moment
from paddle_exporter.demo.outcome import Outcome
from paddle_exporter.demo.ranks import RankView
from paddle_exporter.demo.screen import Screen

VIEWS = [
    RankView(0, "running", "communication", 1.0, 9.0, 40, 90, 512.4, 0.0123, 0.5, 0, 0.983),
    RankView(1, "vanished", "", 1.0, 9.0, 41, 90, 511.0, 0.0123, 0.25, 7, None),
]
ALERTS = [Alert("RankMissing", 1, "r", 12.0, 12.5), Alert("RunFailed", 0, "r", 11.0, None, active=False)]


def screen(*, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None, highlight=False)
    return Screen(console), console.file


def test_without_a_terminal_there_is_a_line_a_rank_now_and_then():
    seen, out = screen(terminal=False)
    with seen:
        seen.show(1.0, [], [])
        seen.show(1.3, VIEWS, ALERTS)
        assert out.getvalue() == "   1 s  the ranks are starting\n"
        seen._next_line = 0.0
        seen.show(6.0, VIEWS, ALERTS)
    lines = out.getvalue().splitlines()[1:]
    assert lines == [
        "   6 s  rank 0: running, in communication, step 40/90, 512 samples/s, loss 0.5000, accuracy 98.3%",
        "   6 s  rank 1: vanished, step 41/90, 511 samples/s, loss 0.2500 (NaN 7 times), accuracy -",
    ]


def test_on_a_terminal_there_is_a_table_with_the_alerts_that_fire():
    seen, out = screen(terminal=True)
    with seen:
        seen.show(6.0, VIEWS, ALERTS)
        text = out.getvalue()
    assert "40/90" in text
    assert "running, in communication" in text
    assert "alerts firing: RankMissing (rank 1)" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_the_summary_names_ranks_alerts_and_figures(terminal):
    seen, out = screen(terminal=terminal)
    seen.summary(Outcome(2, "crash", 1, VIEWS, Moment(10.0, 1, 41), ALERTS, 160, 0.0021))
    text = out.getvalue()
    assert "Fault: crash in rank 1 at step 41\n" in text
    assert "Alert RankMissing: rank 1, 2.5 s after the fault\n" in text
    assert "Alert RunFailed: rank 0, 1.0 s after the fault (not yet with Alertmanager)\n" in text
    assert "Training took 8.0 s; Prometheus holds 160 series of the run; a rank's scrape took 2.1 ms.\n" in text
    assert "vanished" in text


def test_a_summary_of_nothing():
    seen, out = screen(terminal=False)
    seen.summary(Outcome(2, None))
    assert "Alerts: none\n" in out.getvalue()
    assert "Training took - s" in out.getvalue()
