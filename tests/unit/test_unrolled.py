"""A step that is written out for its names is the same step."""

from __future__ import annotations

import math

import pytest

from paddle_exporter.page import PageWriter
from paddle_exporter.recorder import Recorder

DROPPED = "paddle_exporter_dropped_scalars_total"
NONFINITE = "paddle_train_nonfinite_total"
STEPS = "paddle_train_steps_total"
SCALAR = "paddle_train_scalar"


class Impostor:
    """Sums up to a number, and is none."""

    def __radd__(self, other):
        return other


class Tensor:
    """Counts what is computed with it."""

    size = 1
    shape = ()
    computed = 0

    class place:  # noqa: N801  # what Paddle calls it
        is_cpu_place = staticmethod(lambda: True)

    def __init__(self, value):
        self.value = value

    def __radd__(self, other):
        Tensor.computed += 1
        return self

    def item(self):
        return self.value

    def detach(self):
        return self


def written_out(recorder):
    return "step" in vars(recorder)


@pytest.fixture
def taught(recorder):
    """A recorder whose step is written out for loss, a, b and c/d, each 1.0."""
    for _ in range(3):
        recorder.step(loss=1.0, a=1.0, b=1.0, **{"c/d": 1.0})
    assert written_out(recorder)
    return recorder


def seen_values(seen):
    return [seen("paddle_train_loss"), *(seen(SCALAR, name=name) for name in ("a", "b", "c/d"))]


def test_a_step_is_written_out_once_its_names_came_twice(recorder):
    recorder.step(loss=1.0)
    assert not written_out(recorder)
    recorder.step(loss=1.0)
    assert written_out(recorder)


def test_it_stores_and_counts(taught, scrape):
    taught.step(loss=2.0, a=3, b=True, **{"c/d": 5.0})
    seen = scrape(taught)
    assert seen_values(seen) == [2.0, 3.0, 1.0, 5.0]
    assert (seen(STEPS), seen.total(DROPPED)) == (4, 0)


def test_values_may_come_in_another_order(taught, scrape):
    taught.step(b=4.0, a=3.0, **{"c/d": 5.0}, loss=2.0)
    assert seen_values(scrape(taught)) == [2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"a": 2}, [1, 2, 1, 1]),
        ({"loss": 2, "a": 3, "b": 4}, [2, 3, 4, 1]),
        ({"loss": 2, "a": 3, "b": 4, "c/d": 5, "e": 6}, [2, 3, 4, 5]),
        ({"loss": 2, "a": 3, "b": 4, "e/f": 6}, [2, 3, 4, 1]),
        ({"c/d": 5}, [1, 1, 1, 5]),
    ],
)
def test_other_names_than_those_are_taken(taught, scrape, given, expected):
    taught.step(**given)
    seen = scrape(taught)
    assert seen_values(seen) == expected
    assert (seen(STEPS), seen.total(DROPPED)) == (4, 0)
    assert seen(SCALAR, name="e") == given.get("e")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "a", "c/d"])
def test_a_value_that_is_not_finite_is_counted(taught, scrape, name, value):
    for _ in range(3):
        taught.step(**{"loss": 2.0, "a": 2.0, "b": 2.0, "c/d": 2.0, name: value})
    seen = scrape(taught)
    assert (seen(NONFINITE, scalar=name), seen(STEPS)) == (3, 6)
    assert sorted(seen_values(seen)) == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("value", [None, "1", [1.0], 1j, object(), 10**400])
@pytest.mark.parametrize("name", ["loss", "b", "c/d"])
def test_a_value_that_is_no_number_leaves_the_last_one(taught, scrape, name, value):
    taught.step(**{"loss": 2.0, "a": 2.0, "b": 2.0, "c/d": 2.0, name: value})
    seen = scrape(taught)
    assert (seen(DROPPED, reason="not_a_number"), seen(STEPS)) == (1, 4)
    assert sorted(seen_values(seen)) == [1.0, 2.0, 2.0, 2.0]


def test_values_without_a_name_are_counted_as_dropped(taught, scrape):
    taught.step(9.0, loss=2.0, a=2.0, b=2.0, **{"c/d": 2.0})
    seen = scrape(taught)
    assert (seen(DROPPED, reason="not_a_number"), seen(STEPS)) == (1, 4)
    assert seen_values(seen) == [2.0, 2.0, 2.0, 2.0]


def test_what_a_step_is_told_of_itself(recorder, scrape):
    for i in range(10):
        recorder.step(samples=2, tokens=3.0, global_step=100 + i, loss=1.0)
    recorder.step(samples=-2, tokens=math.nan, global_step=None, loss=1.0)
    assert written_out(recorder)
    seen = scrape(recorder)
    assert (seen("paddle_train_samples_total"), seen("paddle_train_tokens_total")) == (20, 30)
    assert seen("paddle_train_global_step") == 110


NAMES = ["class", "None", "True", "match", "type", "_", "_total", "_plain", "__debug__", "step", "self", "float", "len"]
NAMES += ["Exception", "ﬁ", "é", "漢字", "a b", "a-b", "1a", "train/acc", "{x}", "a=b", "'", '"', "#", "\\", "x" * 128]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bound", [False, True])
def test_any_name_can_be_written_out(recorder, scrape, name, bound):
    step = recorder.bind("loss", name)
    for i in range(5):
        if bound:
            step(1.0, float(i))
        else:
            recorder.step(**{"loss": 1.0, name: float(i)})
    seen = scrape(recorder)
    assert (seen(SCALAR, name=name), seen(STEPS), seen.total(DROPPED)) == (4.0, 5, 0)


def test_all_names_at_once_can_be_written_out(recorder, scrape):
    for i in range(4):
        recorder.step(**{name: float(i) for name in NAMES})
    seen = scrape(recorder)
    assert [seen(SCALAR, name=name) for name in NAMES] == [3.0] * len(NAMES)


def test_hundreds_of_names_can_be_written_out(scrape):
    recorder = Recorder(PageWriter(None, {"run": "r", "rank": "0", "world_size": "1"}), max_scalars=400)
    for i in range(4):
        recorder.step(**{f"s{k}": float(i + k) for k in range(400)})
    assert written_out(recorder)
    assert scrape(recorder)(SCALAR, name="s399") == 402.0


def test_slots_that_are_no_neighbours(recorder, scrape):
    for name in ("d", "b", "x", "a"):
        recorder.log(**{name: 0.0})
    for _ in range(3):
        recorder.step(a=1.0, b=2.0, c=3.0, d=4.0)
    assert written_out(recorder)
    seen = scrape(recorder)
    assert [seen(SCALAR, name=name) for name in "abcdx"] == [1.0, 2.0, 3.0, 4.0, 0.0]


def test_names_that_take_turns_are_all_stored(recorder, scrape):
    for i in range(20):
        recorder.step(a=float(i))
        recorder.step(a=float(i), b=float(i))
        if i % 5 == 0:
            recorder.step(b=-1.0)
            recorder.step(b=-1.0)
            recorder.step(b=-1.0)
    seen = scrape(recorder)
    assert (seen(SCALAR, name="a"), seen(SCALAR, name="b"), seen(STEPS)) == (19.0, 19.0, 52)


def test_nothing_is_computed_with_tensors_once_one_was_seen(taught, scrape):
    Tensor.computed = 0
    for i in range(10):
        taught.step(loss=Tensor(float(i)), a=1.0, b=1.0, **{"c/d": 1.0})
    seen = scrape(taught)
    assert Tensor.computed <= 1
    assert (seen("paddle_train_loss"), seen(STEPS), seen.total(DROPPED)) == (9.0, 13, 0)


def test_every_loss_reaches_its_detector(taught, scrape):
    for i in range(300):
        taught.step(loss=2.0 + 0.01 * (i % 5), a=1.0, b=1.0, **{"c/d": 1.0})
    for _ in range(5):
        taught.step(loss=9.0, a=1.0, b=1.0, **{"c/d": 1.0})
    taught._last_words()
    assert taught._detectors["loss"]._seen >= 40
    assert scrape(taught)("paddle_train_spikes_total", scalar="loss") == 1


@pytest.mark.parametrize("values", [(), (1.0,), (1.0, 2.0, 3.0)])
def test_a_bound_step_of_the_wrong_length_changes_no_value(recorder, scrape, values):
    step = recorder.bind("a", "b")
    step(5.0, 6.0)
    step(*values)
    seen = scrape(recorder)
    assert (seen(SCALAR, name="a"), seen(SCALAR, name="b"), seen.total(DROPPED)) == (5.0, 6.0, 1)


def test_an_impostor_leaves_what_was_never_given_absent(recorder, scrape):
    recorder.bind("a", "b")(1.0, Impostor())
    seen = scrape(recorder)
    assert (seen(SCALAR, name="a"), seen(SCALAR, name="b")) == (1.0, None)


def test_an_impostor_among_values_leaves_the_others_stored(taught, scrape):
    taught.step(loss=2.0, a=Impostor(), b=3.0, **{"c/d": 4.0})
    seen = scrape(taught)
    assert seen_values(seen) == [2.0, 1.0, 3.0, 4.0]
    assert (seen(DROPPED, reason="not_a_number"), seen(STEPS)) == (1, 4)


def test_a_method_that_was_kept_from_before_counts_as_well(recorder, scrape):
    step = recorder.step
    for i in range(5):
        step(loss=float(i), a=1.0)
    step(a=2.0)
    seen = scrape(recorder)
    assert (seen("paddle_train_loss"), seen(SCALAR, name="a"), seen(STEPS)) == (4.0, 2.0, 6)


def test_a_wrapper_around_step_stays(recorder, scrape):
    calls = []
    original = recorder.step

    def wrapper(**scalars):
        calls.append(scalars)
        original(**scalars)

    recorder.step = wrapper
    for i in range(5):
        recorder.step(loss=float(i))
    seen = scrape(recorder)
    assert (len(calls), seen(STEPS), seen("paddle_train_loss")) == (5, 5, 4.0)


def test_a_step_that_is_written_out_is_documented(taught):
    assert taught.step.__doc__ == Recorder.step.__doc__
