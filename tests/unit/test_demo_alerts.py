"""Following alerts: whose they are, when they were first seen, and whether Alertmanager has them."""

from __future__ import annotations

import pytest

from paddle_exporter.demo.alerts import AlertWatch, query


@pytest.fixture
def watch():
    """A watch of run r, at servers that do not answer."""
    return AlertWatch("http://127.0.0.1:9", "http://127.0.0.1:9", "r")


def labels(name, rank=None, run="r", **more):
    return {"alertname": name, "run": run, **({} if rank is None else {"rank": rank}), **more}


def test_the_first_look_at_an_alert_counts(watch):
    watch.take([labels("LossNonFinite", "1")], [], 10.0)
    watch.take([labels("LossNonFinite", "1")], [labels("LossNonFinite", "1")], 11.0)
    watch.take([labels("LossNonFinite", "1")], [labels("LossNonFinite", "1")], 12.0)
    (alert,) = watch.alerts.values()
    assert (alert.name, alert.rank, alert.fired, alert.delivered) == ("LossNonFinite", 1, 10.0, 11.0)


def test_alerts_of_other_runs_are_not_ours(watch):
    watch.take([labels("RankMissing", "1", run="other"), {"alertname": "Watchdog"}], [labels("A", run="other")], 1.0)
    assert not watch.alerts


def test_ranks_are_told_apart_and_states_are_not(watch):
    failed = [labels("RunFailed", rank, state=state) for rank in ("0", "1") for state in ("failed", "killed")]
    watch.take(failed, [], 1.0)
    assert sorted(alert.rank for alert in watch.alerts.values()) == [0, 1]


def test_an_alert_of_the_whole_run_has_no_rank(watch):
    watch.take([labels("RankMissing", cause="never_appeared")], [], 1.0)
    assert [alert.rank for alert in watch.alerts.values()] == [None]


def test_an_alert_that_ended_is_remembered_as_inactive(watch):
    watch.take([labels("TrainingStalled", "0")], [], 1.0)
    watch.take([], [], 2.0)
    assert [alert.active for alert in watch.alerts.values()] == [False]
    watch.take(None, [], 3.0)  # Prometheus did not answer: nothing is known
    assert [alert.active for alert in watch.alerts.values()] == [False]
    watch.take([labels("TrainingStalled", "0")], [], 4.0)
    assert [(alert.active, alert.fired) for alert in watch.alerts.values()] == [(True, 1.0)]


def test_what_alertmanager_alone_still_has_counts_as_fired(watch):
    watch.take([], [labels("LossSpike", "0")], 5.0)
    assert [(alert.fired, alert.delivered) for alert in watch.alerts.values()] == [(5.0, 5.0)]


def test_servers_that_do_not_answer_have_nothing_to_say(watch):
    watch.look()
    assert not watch.alerts
    assert query("http://127.0.0.1:9", "vector(1)") is None
