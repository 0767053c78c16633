"""The demo's verdict and its report: what it counts as gone well, and the numbers it writes."""

from __future__ import annotations

import json

import pytest

from paddle_exporter.demo.alerts import Alert
from paddle_exporter.demo.job import Moment
from paddle_exporter.demo.outcome import Outcome
from paddle_exporter.demo.ranks import RankView


def view(rank, state="finished", **values):
    usual = {"started": 100.0, "last_step": 130.5, "steps": 50, "samples_per_second": 812.34, "loss": 0.25}
    return RankView(rank, state, **{**usual, "accuracy": 0.975, **values})


def outcome(fault=None, *, alerts=(), moment=None, views=None, status=0, series=159):
    views = [view(0), view(1)] if views is None else views
    return Outcome(2, fault, status, views, moment, list(alerts), series, 0.0021)


def alert(name, rank, delivered=112.0):
    return Alert(name, rank, "r", fired=111.0, delivered=delivered)


STRUCK = Moment(time=110.0, rank=1, step=20)


def test_a_healthy_run_without_an_alert_went_well():
    assert outcome().problems() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": 1}, "training failed: the launcher ended with status 1"),
        ({"views": [view(0)]}, "rank 1 told nothing"),
        ({"views": [view(0), view(1, "vanished")]}, "rank 1 is vanished, not finished"),
        ({"series": None}, "Prometheus has no series of the run"),
        ({"alerts": [alert("LossSpike", 1)]}, "LossSpike (rank 1) fired, and nothing was wrong"),
        ({"alerts": [alert("RankMissing", None)]}, "RankMissing fired, and nothing was wrong"),
    ],
)
def test_what_is_wrong_with_a_healthy_run_is_said(changes, said):
    assert outcome(**changes).problems() == [said]


@pytest.mark.parametrize(
    ("fault", "name"),
    [("nan", "LossNonFinite"), ("crash", "RunFailed"), ("crash", "RankMissing"), ("hang", "TrainingStalled")],
)
def test_a_fault_went_well_when_its_alert_named_its_rank(fault, name):
    good = outcome(fault, moment=STRUCK, alerts=[alert(name, 1)])
    assert good.problems() == []
    for wrong in ([], [alert(name, 0)], [alert(name, None)], [alert("LossSpike", 1)], [alert(name, 1, delivered=None)]):
        (problem,) = outcome(fault, moment=STRUCK, alerts=wrong).problems()
        assert problem.startswith("no alert ")
        assert name in problem


def test_a_crash_may_leave_a_rank_dead_and_the_launcher_failed():
    crashed = outcome(
        "crash",
        status=241,
        views=[view(0, "failed"), view(1, "vanished")],
        moment=STRUCK,
        alerts=[alert("RankMissing", 1)],
    )
    assert crashed.problems() == []


def test_a_hang_must_end_well():
    hung = outcome(
        "hang", status=1, views=[view(0, "failed"), view(1)], moment=STRUCK, alerts=[alert("TrainingStalled", 1)]
    )
    assert len(hung.problems()) == 2


def test_a_fault_that_did_not_happen_is_a_problem():
    assert outcome("nan").problems() == ["the fault (nan) did not happen"]


def test_the_report(tmp_path):
    path = tmp_path / "new/report.json"
    outcome("nan", moment=STRUCK, alerts=[alert("LossNonFinite", 1), alert("RankMissing", None, None)]).write(path)
    assert json.loads(path.read_text()) == {
        "ranks": [
            {"rank": rank, "steps": 50, "samples_per_second": 812.3, "loss": 0.25, "accuracy": 0.975} for rank in (0, 1)
        ],
        "fault": {"kind": "nan", "rank": 1},
        "alerts": [
            {"name": "LossNonFinite", "run": "r", "rank": 1, "seconds_after_fault": 2.0},
            {"name": "RankMissing", "run": "r", "rank": None, "seconds_after_fault": 1.0},
        ],
        "series": 159,
        "scrape_seconds": 0.0021,
        "training_seconds": 30.5,
    }


def test_the_report_of_nothing():
    empty = Outcome(2, None).report()
    assert empty == {
        "ranks": [],
        "fault": None,
        "alerts": [],
        "series": None,
        "scrape_seconds": None,
        "training_seconds": None,
    }


def test_without_a_fault_an_alert_came_after_nothing():
    (told,) = outcome(alerts=[alert("LossSpike", 1)]).report()["alerts"]
    assert told["seconds_after_fault"] is None


def test_logs_of_those_that_raised_are_shown_before_those_they_took_along():
    assert outcome(views=[view(0, "killed"), view(1, "failed")]).failed_ranks() == [1]
    assert outcome(views=[view(0, "killed"), view(1)]).failed_ranks() == [0]
    assert outcome(views=[]).failed_ranks() == [0, 1]
