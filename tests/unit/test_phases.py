"""Whose time it is: phases of the training thread."""

from __future__ import annotations

import threading
import time

import pytest

from paddle_exporter import catalogue, phases
from paddle_exporter import recorder as recorder_module
from paddle_exporter.collectors.ranks import RankCollector
from paddle_exporter.page import PageWriter
from paddle_exporter.page_reader import OwnPageReader, PageReader
from paddle_exporter.recorder import Recorder

SECONDS = "paddle_train_phase_seconds_total"


class Clock:
    """A monotonic clock that tests move."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(phases, "monotonic", clock)
    monkeypatch.setattr(recorder_module, "monotonic", clock)
    return clock


@pytest.fixture
def timed(clock):
    return Recorder(PageWriter(None, {"run": "r", "rank": "0", "world_size": "1"}))


def seconds(recorder, clock):
    """Seconds by phase, those of 0 left out."""
    own = OwnPageReader(recorder._page)
    for family in RankCollector(lambda: [own], clock)():
        found = {s.labels["phase"]: round(s.value, 6) for s in family.samples if s.name == SECONDS}
        if found:
            assert list(found) == list(catalogue.PHASES)
            return {phase: value for phase, value in found.items() if value}
    raise AssertionError("no phases")


def values(recorder, clock):
    """Every sample by name and label of a bucket."""
    own = OwnPageReader(recorder._page)
    families = RankCollector(lambda: [own], clock)()
    return {(s.name, s.labels.get("le", "")): s.value for family in families for s in family.samples}


def test_time_in_a_phase_is_its_own_and_the_rest_is_other(timed, clock):
    clock.pass_(1)
    with timed.phase("data"):
        clock.pass_(2)
    clock.pass_(4)
    assert seconds(timed, clock) == {"data": 2, "other": 5}


@pytest.mark.parametrize("name", catalogue.PHASES[:-1])
def test_every_phase_can_be_named(timed, clock, name):
    with timed.phase(name):
        clock.pass_(3)
    assert seconds(timed, clock) == {name: 3}


def test_an_open_phase_is_counted_until_now(timed, clock):
    with timed.phase("communication"):
        clock.pass_(100)
        assert seconds(timed, clock) == {"communication": 100}


def test_an_inner_phase_s_time_is_its_own(timed, clock):
    with timed.phase("forward"):
        clock.pass_(1)
        with timed.phase("communication"):
            clock.pass_(10)
            assert seconds(timed, clock) == {"forward": 1, "communication": 10}
        clock.pass_(2)
    assert seconds(timed, clock) == {"forward": 3, "communication": 10}


def test_a_phase_in_itself_counts_once(timed, clock):
    with timed.phase("forward"), timed.phase("forward"):
        clock.pass_(1)
    assert seconds(timed, clock) == {"forward": 1}


def test_an_exception_closes_the_phase_and_goes_on(timed, clock):
    def fails():
        with timed.phase("data"):
            clock.pass_(1)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    clock.pass_(2)
    assert seconds(timed, clock) == {"data": 1, "other": 2}


@pytest.mark.parametrize("name", ["eval", "checkpoint"])
def test_evaluations_and_checkpoints_are_not_time_of_a_step(timed, clock, name):
    timed.step()
    clock.pass_(1)
    with timed.phase(name):
        clock.pass_(100)
    timed.step()
    assert values(timed, clock)[("paddle_train_step_duration_seconds_sum", "")] == 1


def test_a_checkpoint_in_an_evaluation_is_left_out_once(timed, clock):
    timed.step()
    clock.pass_(1)
    with timed.phase("eval"):
        clock.pass_(10)
        with timed.phase("checkpoint"):
            clock.pass_(100)
        clock.pass_(10)
    timed.step()
    assert values(timed, clock)[("paddle_train_step_duration_seconds_sum", "")] == 1
    assert seconds(timed, clock) == {"eval": 20, "checkpoint": 100, "other": 1}


def test_time_of_an_evaluation_does_not_lower_the_throughput(timed, clock):
    for _ in range(20):
        timed.step(samples=10)
        clock.pass_(1)
    before = values(timed, clock)[("paddle_train_samples_per_second", "")]
    with timed.phase("eval"):
        clock.pass_(600)
        assert values(timed, clock)[("paddle_train_samples_per_second", "")] == before
    timed.step(samples=10)
    assert values(timed, clock)[("paddle_train_samples_per_second", "")] == before == 10


def test_throughput_falls_while_steps_stay_away(timed, clock):
    for _ in range(20):
        timed.step(samples=10)
        clock.pass_(1)
    clock.pass_(600)
    assert values(timed, clock)[("paddle_train_samples_per_second", "")] < 1


def test_throughput_of_steps_longer_than_its_window_is_that_of_the_last_one(timed, clock):
    for pause in (60, 60, 30):
        timed.step(samples=30)
        clock.pass_(pause)
    timed.step(samples=30)
    assert values(timed, clock)[("paddle_train_samples_per_second", "")] == 1


def test_a_step_within_an_evaluation_never_makes_durations_fall(timed, clock):
    timed.step()
    clock.pass_(1)
    timed.step()
    seen = [values(timed, clock)]
    with timed.phase("eval"):
        clock.pass_(50)
        timed.step()
        seen.append(values(timed, clock))
        clock.pass_(5)
    clock.pass_(1)
    timed.step()
    seen.append(values(timed, clock))
    for earlier, later in zip(seen, seen[1:]):
        for key in earlier:
            if key[0].startswith("paddle_train_step_duration"):
                assert later[key] >= earlier[key]


def test_throughput_survives_a_step_within_an_evaluation(timed, clock):
    for _ in range(20):
        with timed.phase("eval"):
            clock.pass_(10)
            timed.step(samples=10)
    assert values(timed, clock)[("paddle_train_samples_per_second", "")] > 0


def test_phases_of_other_threads_are_ignored(timed, clock):
    def other():
        with timed.phase("eval"):
            clock.pass_(10)

    with timed.phase("data"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seconds(timed, clock) == {"data": 10}


def test_a_phase_that_another_thread_leaves_stays_the_training_thread_s(timed, clock):
    phase = timed.phase("data")
    phase.__enter__()
    thread = threading.Thread(target=phase.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    clock.pass_(3)
    assert seconds(timed, clock) == {"data": 3}


@pytest.mark.parametrize("name", ["other", "trainig", "", "x" * 1000, None, 3, [], {}])
def test_an_unknown_phase_is_counted_as_dropped_warned_of_once_and_harmless(timed, clock, scrape, caplog, name):
    for _ in range(3):
        with timed.phase(name):
            clock.pass_(1)
    assert seconds(timed, clock) == {"other": 3}
    assert len(caplog.records) == 1
    assert scrape(timed).total("paddle_exporter_dropped_scalars_total") == 3


def test_ever_new_unknown_phases_do_not_fill_the_log(timed, caplog):
    for i in range(100):
        with timed.phase(f"step {i}"):
            pass
    assert len(caplog.records) <= 2


def test_leaving_a_phase_that_was_not_entered_is_harmless(timed, clock):
    timed.phase("data").__exit__(None, None, None)
    clock.pass_(1)
    assert seconds(timed, clock) == {"other": 1}


def test_phases_left_in_the_wrong_order_lose_no_time(timed, clock):
    outer, inner = timed.phase("forward"), timed.phase("data")
    outer.__enter__()
    clock.pass_(1)
    inner.__enter__()
    clock.pass_(2)
    outer.__exit__(None, None, None)
    clock.pass_(4)
    inner.__exit__(None, None, None)
    clock.pass_(8)
    found = seconds(timed, clock)
    assert sum(found.values()) == 15
    assert found["other"] == 8


def test_seconds_of_phases_never_fall_however_a_scrape_and_the_loop_interleave():
    """The scraping thread may lose the interpreter at any point, between reading the page and reading the clock too."""
    recorder = Recorder(PageWriter(None, {"run": "r", "rank": "0", "world_size": "1"}))
    own = OwnPageReader(recorder._page)
    collect = RankCollector(lambda: [own])
    stop = threading.Event()

    def scrapes():
        last = {}
        while not stop.is_set():
            samples = [sample for family in collect() for sample in family.samples]
            seen = {s.labels["phase"]: s.value for s in samples if s.name == SECONDS}
            falls.extend((phase, last[phase] - value) for phase, value in seen.items() if value < last.get(phase, 0.0))
            last = seen

    falls = []
    thread = threading.Thread(target=scrapes)
    thread.start()
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline and not falls:
        for name in ("data", "forward"):
            with recorder.phase(name):
                sum(range(3000))
    stop.set()
    thread.join()
    assert falls == []


def test_seconds_of_phases_do_not_fall_when_the_process_dies(child, only_page):
    process = child(
        "import paddle_exporter, sys\n"
        "run = paddle_exporter.start()\n"
        "run.step()\n"
        "with run.phase('communication'):\n"
        "    print('in', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    assert process.stdout.readline() == "in\n"
    reader = PageReader(only_page())
    collect = RankCollector(lambda: [reader])

    def look():
        samples = [sample for family in collect() for sample in family.samples]
        states = [s.labels["state"] for s in samples if s.name == "paddle_run_state" and s.value]
        return states, {s.labels["phase"]: s.value for s in samples if s.name == SECONDS}

    first = look()[1]["communication"]
    while look()[1]["communication"] < first + 0.2:
        pass
    _, alive = look()
    process.kill()
    process.wait()
    states, dead = look()
    assert states == ["vanished"]
    for phase in ("communication", "other"):
        assert dead[phase] >= alive[phase]
    reader.close()


def test_no_time_is_lost_in_a_real_loop(scrape):
    before = time.monotonic()
    recorder = Recorder(PageWriter(None, {"run": "r", "rank": "0", "world_size": "1"}))
    for name in ("data", "forward", "backward") * 50:
        with recorder.phase(name):
            sum(range(1000))
        recorder.step()
    total = scrape(recorder).total(SECONDS)
    assert 0 < total <= time.monotonic() - before
