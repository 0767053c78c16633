"""What the demo reads off pages, also off those of the dead, and the faults it causes."""

from __future__ import annotations

import time

import pytest

from paddle_exporter.demo.faults import Fault
from paddle_exporter.demo.ranks import Ranks
from paddle_exporter.page import PageWriter
from paddle_exporter.recorder import Recorder


@pytest.fixture
def rank_of(page_dir):
    """A recorder with a page, of a rank."""
    made = []

    def make(rank):
        info = {"run": "r", "rank": str(rank), "world_size": "2"}
        made.append(Recorder(PageWriter(page_dir / f"rank{rank:05d}-1-1.page", info), target_steps=10))
        return made[-1]

    yield make
    for recorder in made:
        recorder._page.detach()


@pytest.fixture
def ranks(page_dir):
    reader = Ranks(page_dir)
    yield reader
    reader.close()


def test_no_pages_no_ranks(ranks):
    assert ranks.read() == []


def test_ranks_are_read_in_order_also_late_ones(rank_of, ranks):
    rank_of(1).step(samples=4, loss=0.5)
    assert [view.rank for view in ranks.read()] == [1]
    rank_of(0)
    assert [view.rank for view in ranks.read()] == [0, 1]


def test_a_page_that_is_being_made_is_left_for_later(page_dir, rank_of, ranks):
    unfinished = page_dir / "rank00001-1-1.page"
    unfinished.touch(mode=0o600)
    assert ranks.read() == []
    unfinished.unlink()
    rank_of(1)
    assert [view.rank for view in ranks.read()] == [1]


def test_what_a_rank_told(rank_of, ranks):
    recorder = rank_of(0)
    for loss in (1.0, 0.5, float("nan")):
        recorder.step(samples=4, loss=loss)
    recorder.eval(loss=0.4, acc=0.96)
    (view,) = ranks.read()
    assert (view.state, view.alive, view.steps, view.target_steps) == ("running", True, 3, 10)
    assert (view.loss, view.nonfinite_losses, view.accuracy) == (0.5, 1, 0.96)
    assert abs(view.last_step - time.time()) < 5
    assert view.step_seconds is not None
    assert view.waits_in == ""


def test_before_its_first_step_a_rank_has_told_nothing(rank_of, ranks):
    rank_of(0)
    (view,) = ranks.read()
    assert (view.state, view.steps, view.loss, view.accuracy, view.last_step) == ("starting", 0, None, None, None)


def test_a_killed_rank_is_still_there_with_its_last_step(child, page_dir, ranks):
    process = child(
        "import paddle_exporter, time\n"
        "run = paddle_exporter.start('r', serve=False)\n"
        "for i in range(7): run.step(samples=4, loss=0.25)\n"
        "print('told', flush=True); time.sleep(60)"
    )
    assert process.stdout.readline() == "told\n"
    assert [view.state for view in ranks.read()] == ["running"]
    process.kill()
    process.wait()
    (view,) = ranks.read()
    assert (view.state, view.alive, view.steps, view.loss) == ("vanished", False, 7, 0.25)


def test_a_rank_without_steps_says_what_it_waits_in(rank_of, ranks, monkeypatch):
    recorder = rank_of(0)
    recorder.step(samples=4, loss=0.5)
    monkeypatch.setattr("paddle_exporter.demo.ranks._QUIET", 0.05)
    with recorder.phase("communication"):
        ranks.read()
        time.sleep(0.1)
        (view,) = ranks.read()
    assert view.waits_in == "communication"


class Images:
    """Takes the place of a tensor; remembers what was stored into it."""

    def __init__(self):
        self.stored = []

    def __setitem__(self, place, value):
        self.stored.append(value)


def test_a_fault_strikes_at_its_step_and_says_when(tmp_path):
    file = tmp_path / "fault.json"
    fault = Fault("nan", rank=1, step=3, file=file)
    early = Images()
    assert fault.strike(2, early) is early
    assert early.stored == []
    assert not file.exists()
    assert [value != value for value in fault.strike(3, Images()).stored] == [True]
    told = file.read_text()
    assert [value != value for value in fault.strike(4, Images()).stored] == [True]
    assert file.read_text() == told


def test_no_fault_changes_nothing(tmp_path):
    images = Images()
    assert Fault(None, 0, 0, tmp_path / "fault.json").strike(5, images) is images
    assert images.stored == []
    assert not list(tmp_path.iterdir())
