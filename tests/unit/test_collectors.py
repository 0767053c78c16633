"""Collectors and the guard around them."""

from __future__ import annotations

import logging
import math

import pytest
from prometheus_client.core import GaugeMetricFamily

from paddle_exporter import catalogue
from paddle_exporter.collectors.families import Families
from paddle_exporter.collectors.guard import Guard
from paddle_exporter.collectors.ranks import RankCollector, state
from paddle_exporter.collectors.self import collect_self
from paddle_exporter.page import PageError, PageWriter
from paddle_exporter.page_reader import OwnPageReader, Snapshot
from paddle_exporter.recorder import Recorder


def collected(guard):
    return {(s.name, *s.labels.values()): s.value for family in guard.collect() for s in family.samples}


def good():
    return [GaugeMetricFamily("good", "Help.", value=1.0)]


# --- the guard --------------------------------------------------------------------------------------------------


def test_every_collector_is_timed():
    ticks = iter([0.0, 2.0, 10.0, 15.0])
    seen = collected(Guard({"a": good, "b": list}, clock=lambda: next(ticks)))
    assert seen[("paddle_exporter_collector_duration_seconds", "a")] == 2.0
    assert seen[("paddle_exporter_collector_duration_seconds", "b")] == 5.0
    assert seen[("paddle_exporter_collector_success", "a")] == 1.0


@pytest.mark.parametrize("error", [OSError("x"), KeyError("x"), RecursionError(), MemoryError(), StopIteration()])
def test_a_collector_that_raises_is_told_and_costs_nothing_else(error):
    def broken():
        yield from good()
        raise error

    def broken_at_once():
        raise error

    seen = collected(Guard({"half": broken, "at once": broken_at_once, "other": good}))
    assert seen[("good",)] == 1.0
    assert [seen[("paddle_exporter_collector_success", name)] for name in ("half", "at once", "other")] == [
        0.0,
        0.0,
        1.0,
    ]


def test_nothing_of_a_collector_that_fails_halfway_is_exposed():
    def broken():
        yield GaugeMetricFamily("half", "Help.", value=1.0)
        raise OSError

    assert ("half",) not in collected(Guard({"broken": broken}))


@pytest.mark.parametrize("junk", [None, 5, object()])
def test_a_collector_that_returns_no_families_is_told(junk):
    assert collected(Guard({"junk": lambda: junk}))[("paddle_exporter_collector_success", "junk")] == 0.0


def test_a_change_of_state_is_logged_once(caplog):
    failing = [False]

    def sometimes():
        if failing[0]:
            raise OSError("gone")
        return good()

    guard = Guard({"sometimes": sometimes})
    told = []
    for now in (False, False, True, True, True, False, False, True):
        failing[0] = now
        caplog.clear()
        collected(guard)
        told.append(len(caplog.records))
    assert told == [0, 0, 1, 0, 0, 1, 0, 1]
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "sometimes" in caplog.text


def test_registering_collects_nothing():
    calls = []
    assert Guard({"a": lambda: calls.append(1) or []}).describe() == []
    assert calls == []


def test_versions_are_exposed():
    (family,) = collect_self()
    assert set(family.samples[0].labels) == {"version", "python"}


# --- families ---------------------------------------------------------------------------------------------------


def test_a_value_that_is_nan_is_absent():
    families = Families()
    families.add(catalogue.LOSS, ["r", "0"], math.nan)
    assert list(families) == []


def test_buckets_are_summed_up():
    families = Families()
    counts = [1.0] + [0.0] * (len(catalogue.STEP_BUCKETS) - 1) + [2.0]
    families.histogram(catalogue.STEP_DURATION, ["r", "0"], counts, 9.0)
    (family,) = families
    values = {(s.name.rpartition("_")[2], s.labels.get("le")): s.value for s in family.samples}
    assert values[("bucket", "0.002")] == 1.0
    assert values[("bucket", "60.0")] == 1.0
    assert values[("bucket", "+Inf")] == values[("count", None)] == 3.0
    assert values[("sum", None)] == 9.0


# --- ranks ------------------------------------------------------------------------------------------------------


def snapshot(stored, alive=True, terminated=False):
    return Snapshot({}, 1, stored, alive, terminated, 1, (), ())


@pytest.mark.parametrize(
    ("stored", "alive", "terminated", "told"),
    [
        ("starting", True, False, "starting"),
        ("running", True, False, "running"),
        ("running", False, False, "vanished"),
        ("starting", False, False, "vanished"),
        ("running", False, True, "killed"),
        ("running", True, True, "running"),
        ("finished", False, True, "finished"),
        ("finished", True, False, "finished"),
        ("failed", False, False, "failed"),
        ("killed", False, False, "killed"),
    ],
)
def test_the_state_of_a_rank(stored, alive, terminated, told):
    assert state(snapshot(stored, alive, terminated)) == told


def page(**info):
    facts = {"run": "r", "rank": "0", "world_size": "2", **info}
    return Recorder(PageWriter(None, facts))


def test_exactly_one_state_is_1(scrape):
    recorder = page()
    for expected in ("starting", "running"):
        seen = {s.labels["state"]: s.value for s in scrape(recorder).samples if s.name == "paddle_run_state"}
        assert list(seen) == list(catalogue.STATES)
        assert [name for name, value in seen.items() if value] == [expected]
        assert set(seen.values()) == {0.0, 1.0}
        recorder.step()


def test_several_ranks_are_several_series():
    recorders = [page(run=run, rank=rank) for run in "ab" for rank in "01"]
    for i, recorder in enumerate(recorders):
        recorder.step(loss=float(i))
    readers = [OwnPageReader(recorder._page) for recorder in recorders]
    families = {family.name: family for family in RankCollector(lambda: readers)()}
    assert {tuple(s.labels.values()): s.value for s in families["paddle_train_loss"].samples} == {
        ("a", "0"): 0.0,
        ("a", "1"): 1.0,
        ("b", "0"): 2.0,
        ("b", "1"): 3.0,
    }


@pytest.mark.parametrize("error", [PageError("corrupted", "x"), OSError("x"), FileNotFoundError()])
def test_a_page_that_cannot_be_read_costs_only_itself(error):
    class Broken:
        def read(self):
            raise error

    recorder = page()
    families = {f.name: f for f in RankCollector(lambda: [Broken(), OwnPageReader(recorder._page), Broken()])()}
    assert sum(s.value for s in families["paddle_exporter_page_errors"].samples) == 2.0
    assert len(families["paddle_run_info"].samples) == 1


@pytest.mark.parametrize(
    "facts",
    [{"world_size": "many"}, {"world_size": None}, {"run": None}, {"bad-label name": "x"}, {"le": "5"}, {"": "x"}],
)
def test_facts_that_make_no_sense_cost_no_other_rank(facts):
    recorders = [page(**facts), page(rank="1")]
    readers = [OwnPageReader(recorder._page) for recorder in recorders]
    families = {f.name: f for f in RankCollector(lambda: readers)()}
    assert "1" in {s.labels["rank"] for s in families["paddle_train_steps"].samples}


@pytest.mark.parametrize("slot", ["_phase", "_end", "_start", "_mark_time", "_older_mark_time"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, -1.0, 1e300, 99.0])
def test_slots_of_a_page_that_make_no_sense_cost_no_other_rank(slot, value):
    from paddle_exporter import slots

    recorders = [page(), page(rank="1")]
    recorders[0].step()
    recorders[0]._values[slots.number(slot)] = value
    recorders[0]._commit()
    readers = [OwnPageReader(recorder._page) for recorder in recorders]
    families = {f.name: f for f in RankCollector(lambda: readers)()}
    assert "1" in {s.labels["rank"] for s in families["paddle_train_steps"].samples}


def test_the_start_time_is_unix_time(scrape):
    import time

    assert abs(scrape(page())("paddle_run_start_time_seconds") - time.time()) < 5


def test_the_world_size_is_exposed(scrape):
    assert scrape(page())("paddle_run_world_size") == 2


def test_time_of_a_run_that_ended_stands_still(scrape):
    recorder = page()
    recorder.step()
    recorder._last_words()
    first = scrape(recorder).total("paddle_train_phase_seconds_total")
    assert scrape(recorder).total("paddle_train_phase_seconds_total") == first
