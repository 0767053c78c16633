"""What a training loop tells, and what is exposed of it."""

from __future__ import annotations

import decimal
import logging
import math
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddle_exporter.page import PageWriter
from paddle_exporter.recorder import Recorder
from paddle_exporter.scalars import LOG

DROPPED = "paddle_exporter_dropped_scalars_total"
NONFINITE = "paddle_train_nonfinite_total"
STEPS = "paddle_train_steps_total"


class Hostile:
    """Whatever is done with it raises."""

    def __getattribute__(self, name):
        if name.startswith("__"):  # those the tests' own tools look at
            return object.__getattribute__(self, name)
        raise RuntimeError(name)

    def __float__(self):
        raise RuntimeError("float")

    def __repr__(self):
        return "Hostile()"

    __int__ = __index__ = __bool__ = __len__ = __iter__ = __float__

    def __radd__(self, other):
        raise RuntimeError("radd")

    __add__ = __sub__ = __rsub__ = __lt__ = __gt__ = __le__ = __ge__ = __radd__


class Adds:
    """Passes for a number in a sum, and is none."""

    def __radd__(self, other):
        return 0.0


class Item:
    """An array whose conversion fails, as one does whose device is lost."""

    dtype = "float32"
    size = 1

    def item(self):
        raise RuntimeError("device lost")


NOT_NUMBERS = {
    "text": "1",
    "none": None,
    "list": [1.0],
    "dict": {},
    "object": object(),
    "complex": 1j,
    "decimal": decimal.Decimal(1),
    "adds up": Adds(),
    "lost device": Item(),
    "hostile": Hostile(),
    "too large": 10**400,
}
"""By name: pytest itself cannot look at all of them."""
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
BAD = {**NOT_NUMBERS, **NOT_FINITE}
BAD_ALONE = [kind for kind in BAD if kind != "decimal"]  # which may be taken where it is not summed up with others


def not_a_number(seen):
    return seen(DROPPED, reason="not_a_number")


# --- a step ---------------------------------------------------------------------------------------------------


def test_a_step_counts_itself_its_samples_and_its_tokens(recorder, scrape):
    recorder.step(samples=64, tokens=4096)
    recorder.step(samples=32, tokens=100)
    seen = scrape(recorder)
    assert seen(STEPS) == 2
    assert seen("paddle_train_samples_total") == 96
    assert seen("paddle_train_tokens_total") == 4196


def test_a_step_without_samples_adds_none(recorder, scrape):
    recorder.step(samples=64)
    recorder.step()
    recorder.step(loss=1.0)
    assert scrape(recorder)("paddle_train_samples_total") == 64


def test_known_names_have_metrics_of_their_own(recorder, scrape):
    recorder.step(loss=2.5, learning_rate=1e-4, grad_norm=0.7, loss_scale=1024)
    seen = scrape(recorder)
    assert seen("paddle_train_loss") == 2.5
    assert seen("paddle_train_learning_rate") == 1e-4
    assert seen("paddle_train_grad_norm") == 0.7
    assert seen("paddle_train_loss_scale") == 1024
    assert seen.total("paddle_train_scalar") == 0


def test_other_names_are_scalars(recorder, scrape):
    recorder.step(**{"train/acc": 0.5, "ünïcode 漢字": 1, 'quote"back\\slash': 2})
    seen = scrape(recorder)
    assert seen("paddle_train_scalar", name="train/acc") == 0.5
    assert seen("paddle_train_scalar", name="ünïcode 漢字") == 1
    assert seen("paddle_train_scalar", name='quote"back\\slash') == 2


@pytest.mark.parametrize("call", ["step", "log", "eval"])
@pytest.mark.parametrize("name", ["self", "cls", "scalars", "state", "name", "kind", "run", "rank", "le", "_x", "a b"])
def test_any_name_can_be_used(recorder, scrape, call, name):
    getattr(recorder, call)(**{name: 3.0})
    metric = "paddle_eval_scalar" if call == "eval" else "paddle_train_scalar"
    assert scrape(recorder)(metric, name=name) == 3.0


def test_a_log_stores_values_and_counts_no_step(recorder, scrape):
    recorder.log(loss=1.5, x=2)
    seen = scrape(recorder)
    assert seen("paddle_train_loss") == 1.5
    assert seen("paddle_train_scalar", name="x") == 2
    assert seen(STEPS) == 0


def test_an_evaluation_has_metrics_of_its_own(recorder, scrape):
    recorder.step(loss=1.0, acc=0.1)
    recorder.eval(loss=2.0, acc=0.2)
    seen = scrape(recorder)
    assert (seen("paddle_train_loss"), seen("paddle_eval_loss")) == (1.0, 2.0)
    assert (seen("paddle_train_scalar", name="acc"), seen("paddle_eval_scalar", name="acc")) == (0.1, 0.2)


@pytest.mark.parametrize("name", ["loss", "acc"])
def test_a_training_scalar_called_like_one_of_an_evaluation_makes_no_series_twice(recorder, scrape, name):
    recorder.log(**{f"eval/{name}": math.nan})
    recorder.eval(**{name: math.nan})
    seen = scrape(recorder)
    keys = [(sample.name, *sorted(sample.labels.items())) for sample in seen.samples]
    assert len(keys) == len(set(keys))
    assert seen.total(NONFINITE) == 2


def test_an_epoch_is_told(recorder, scrape):
    assert scrape(recorder)("paddle_train_epoch") is None
    recorder.epoch(3)
    assert scrape(recorder)("paddle_train_epoch") == 3


def test_the_global_step_goes_on_from_the_first_step(scrape):
    recorder = Recorder(PageWriter(None, {}), first_step=1000)
    assert scrape(recorder)("paddle_train_global_step") == 1000
    recorder.step()
    assert scrape(recorder)("paddle_train_global_step") == 1001


def test_a_global_step_can_be_told(recorder, scrape):
    recorder.step(global_step=500)
    assert scrape(recorder)("paddle_train_global_step") == 500
    recorder.step()
    assert scrape(recorder)("paddle_train_global_step") == 501
    assert scrape(recorder)(STEPS) == 2


def test_a_reload_moves_the_global_step_only(recorder, scrape):
    recorder.step()
    recorder.reload(10)
    assert scrape(recorder)("paddle_train_global_step") == 10
    recorder.step()
    assert scrape(recorder)("paddle_train_global_step") == 11
    assert scrape(recorder)(STEPS) == 2


def test_the_last_step_has_a_unix_time(recorder, scrape):
    assert scrape(recorder)("paddle_train_last_step_timestamp_seconds") is None
    before = time.time()
    recorder.step()
    assert before - 0.1 <= scrape(recorder)("paddle_train_last_step_timestamp_seconds") <= time.time() + 0.1


def test_every_step_but_the_first_is_in_the_histogram(recorder, scrape):
    for _ in range(5):
        recorder.step()
    seen = scrape(recorder)
    assert seen("paddle_train_step_duration_seconds_count") == 4
    assert seen("paddle_train_step_duration_seconds_bucket", le="+Inf") == 4
    assert seen("paddle_train_step_duration_seconds_bucket", le="60.0") == 4


def test_checkpoints_are_counted(recorder, scrape):
    recorder.checkpoint(2.0)
    recorder.checkpoint(1.0, ok=False)
    seen = scrape(recorder)
    assert seen("paddle_checkpoint_saves_total") == 1
    assert seen("paddle_checkpoint_failures_total") == 1
    assert seen("paddle_checkpoint_seconds_total") == 3
    assert abs(seen("paddle_checkpoint_last_success_timestamp_seconds") - time.time()) < 5


def test_a_failed_checkpoint_is_no_success(recorder, scrape):
    recorder.checkpoint(1.0, ok=False)
    assert scrape(recorder)("paddle_checkpoint_last_success_timestamp_seconds") is None


def test_skipped_steps_are_counted(recorder, scrape):
    recorder.skipped_step()
    recorder.skipped_step()
    assert scrape(recorder)("paddle_train_skipped_steps_total") == 2


# --- a bound step ---------------------------------------------------------------------------------------------


def test_a_bound_step_is_a_step(recorder, scrape):
    step = recorder.bind("samples", "loss", "train/acc")
    step(64, 2.5, 0.5)
    step(64, 2.25, 0.75)
    seen = scrape(recorder)
    assert (seen(STEPS), seen("paddle_train_samples_total")) == (2, 128)
    assert (seen("paddle_train_loss"), seen("paddle_train_scalar", name="train/acc")) == (2.25, 0.75)


@pytest.mark.parametrize("values", [(), (1,), (1, 2, 3)])
def test_a_bound_step_of_too_few_or_many_values_is_counted_as_dropped(recorder, scrape, values):
    recorder.bind("samples", "loss")(*values)
    seen = scrape(recorder)
    assert not_a_number(seen) == 1
    assert seen("paddle_train_loss") is None


@pytest.mark.parametrize("names", [(None,), ([],), ({},), (1,), ("",), ("loss", []), (b"loss",)])
def test_binding_names_that_are_none_raises_nothing(recorder, scrape, names):
    recorder.bind(*names)(*[1.0 for _ in names])
    assert scrape(recorder).total(DROPPED) >= 1


def test_a_bound_step_without_names_is_a_step(recorder, scrape):
    recorder.bind()()
    assert scrape(recorder)(STEPS) == 1


def test_a_name_bound_twice_takes_the_last_value(recorder, scrape):
    recorder.bind("x", "x")(1.0, 2.0)
    assert scrape(recorder)("paddle_train_scalar", name="x") == 2.0


# --- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["step", "log", "eval", "bind"])
@pytest.mark.parametrize("value", [3, 3.0, True, False, 0, -2, 10**300, -0.0, 5e-324, 1.7e308], ids=range(10))
def test_python_numbers_are_taken(recorder, scrape, call, value):
    if call == "bind":
        recorder.bind("x")(value)
    else:
        getattr(recorder, call)(x=value)
    seen = scrape(recorder)
    assert seen("paddle_eval_scalar" if call == "eval" else "paddle_train_scalar", name="x") == float(value)
    assert seen.total(DROPPED) == 0


NUMPY = ["float16(3)", "float32(3)", "float64(3)", "int8(3)", "int64(3)", "uint64(3)", "array(3.0)", "array([3.0])"]
NUMPY += ["array([[3]])", "ones((1, 1, 1)) * 3", "array([3], dtype=object)", "ma.masked_array([3.0])", "longdouble(3)"]


@pytest.mark.parametrize("call", ["step", "log", "eval", "bind"])
@pytest.mark.parametrize("expression", NUMPY)
def test_numpy_numbers_are_taken(recorder, scrape, call, expression):
    numpy = pytest.importorskip("numpy")
    value = eval(f"numpy.{expression}", {"numpy": numpy})
    if call == "bind":
        recorder.bind("x", "y")(value, 1.0)
    else:
        getattr(recorder, call)(x=value, y=1.0)
    seen = scrape(recorder)
    assert seen("paddle_eval_scalar" if call == "eval" else "paddle_train_scalar", name="x") == 3.0
    assert seen.total(DROPPED) == 0


def test_numpy_booleans_are_taken(recorder, scrape):
    numpy = pytest.importorskip("numpy")
    recorder.step(x=numpy.bool_(True))
    assert scrape(recorder)("paddle_train_scalar", name="x") == 1.0


def test_numpy_numbers_of_samples_are_taken(recorder, scrape):
    numpy = pytest.importorskip("numpy")
    recorder.step(samples=numpy.int64(5), tokens=numpy.array([7]))
    recorder.step(samples=numpy.int32(5), tokens=numpy.float32(7))
    seen = scrape(recorder)
    assert (seen("paddle_train_samples_total"), seen("paddle_train_tokens_total")) == (10, 14)


@pytest.mark.parametrize("expression", ["array([1, 2])", "array([])", "array('a')", "array([None])", "complex64(1)"])
def test_numpy_values_that_are_not_one_number_are_counted(recorder, scrape, expression):
    numpy = pytest.importorskip("numpy")
    recorder.step(x=eval(f"numpy.{expression}", {"numpy": numpy}), y=1.0)
    seen = scrape(recorder)
    assert (not_a_number(seen), seen(STEPS)) == (1, 1)
    assert seen("paddle_train_scalar", name="y") == 1.0
    assert seen("paddle_train_scalar", name="x") is None


@pytest.mark.parametrize("kind", NOT_NUMBERS)
def test_a_step_with_a_value_that_is_no_number_is_counted_and_its_other_values_stored(recorder, scrape, kind):
    recorder.step(samples=8, a=1.0, x=BAD[kind], b=2.0)
    seen = scrape(recorder)
    assert (seen(STEPS), seen("paddle_train_samples_total")) == (1, 8)
    assert (seen("paddle_train_scalar", name="a"), seen("paddle_train_scalar", name="b")) == (1.0, 2.0)
    assert seen("paddle_train_scalar", name="x") is None
    assert not_a_number(seen) + seen(NONFINITE, scalar="x") == 1


@pytest.mark.parametrize("call", ["step", "log", "eval"])
@pytest.mark.parametrize("kind", NOT_NUMBERS)
def test_a_value_that_is_no_number_leaves_the_last_one(recorder, scrape, call, kind):
    for value in (2.0, BAD[kind]):
        getattr(recorder, call)(a=1.0, x=value, b=3.0)
    metric = "paddle_eval_scalar" if call == "eval" else "paddle_train_scalar"
    assert scrape(recorder)(metric, name="x") == 2.0


@pytest.mark.parametrize("kind", NOT_NUMBERS)
def test_a_bound_step_with_a_value_that_is_no_number_is_counted(recorder, scrape, kind):
    recorder.bind("a", "x", "b")(1.0, BAD[kind], 2.0)
    seen = scrape(recorder)
    assert seen(STEPS) == 1
    assert (seen("paddle_train_scalar", name="a"), seen("paddle_train_scalar", name="b")) == (1.0, 2.0)
    assert not_a_number(seen) + seen(NONFINITE, scalar="x") == 1


@pytest.mark.parametrize("kind", NOT_NUMBERS)
def test_a_log_with_a_value_that_is_no_number_stores_the_others(recorder, scrape, kind):
    recorder.log(a=1.0, x=BAD[kind], b=2.0)
    seen = scrape(recorder)
    assert (seen("paddle_train_scalar", name="a"), seen("paddle_train_scalar", name="b")) == (1.0, 2.0)
    assert not_a_number(seen) + seen(NONFINITE, scalar="x") == 1


@pytest.mark.parametrize("name", ["samples", "tokens", "global_step"])
@pytest.mark.parametrize("kind", BAD)
def test_a_step_counts_whatever_it_is_told_of_itself(recorder, scrape, name, kind):
    recorder.step(**{name: 3})
    recorder.step(**{name: BAD[kind]})
    seen = scrape(recorder)
    assert seen(STEPS) == 2
    assert seen.total(DROPPED) == 1
    assert seen(f"paddle_train_{name}{'' if name == 'global_step' else '_total'}") in (3, 4)


def test_a_global_step_that_is_no_number_from_the_start_leaves_our_own_count(recorder, scrape):
    recorder.step(global_step=math.nan)
    assert scrape(recorder)("paddle_train_global_step") == 1


def test_a_global_step_that_is_no_number_does_not_stop_the_count(recorder, scrape):
    recorder.step(global_step=100)
    for _ in range(5):
        recorder.step(global_step=None)
    assert scrape(recorder)("paddle_train_global_step") == 105


@pytest.mark.parametrize("value", [-5, -0.1, math.nan, -math.inf, math.inf, "x", None])
def test_bad_samples_never_make_the_counter_fall_or_vanish(recorder, scrape, value):
    recorder.step(samples=10)
    recorder.step(samples=value)
    recorder.step(samples=1)
    assert scrape(recorder)("paddle_train_samples_total") == 11


def test_huge_samples_never_make_the_counter_infinite(recorder, scrape):
    for _ in range(4):
        recorder.step(samples=1e308)
    seen = scrape(recorder)
    assert math.isfinite(seen("paddle_train_samples_total"))
    assert math.isfinite(seen("paddle_train_samples_per_second") or 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "learning_rate", "grad_norm", "loss_scale", "mine"])
def test_a_value_that_is_not_finite_is_counted_and_the_last_finite_one_stays(recorder, scrape, name, value):
    recorder.step(**{name: 2.0})
    recorder.step(**{name: value})
    recorder.log(**{name: value})
    recorder.bind(name)(value)
    seen = scrape(recorder)
    assert seen(NONFINITE, scalar=name) == 3
    assert (
        seen.total("paddle_train_scalar")
        + sum(seen(f"paddle_train_{known}") or 0.0 for known in ("loss", "learning_rate", "grad_norm", "loss_scale"))
        == 2.0
    )
    assert seen(STEPS) == 3
    assert seen.total(DROPPED) == 0


def test_a_value_that_was_never_finite_is_absent(recorder, scrape):
    recorder.step(loss=math.nan)
    assert scrape(recorder)("paddle_train_loss") is None


def test_an_evaluation_that_is_not_finite_is_counted_as_such(recorder, scrape):
    recorder.eval(loss=math.nan)
    seen = scrape(recorder)
    assert seen(NONFINITE, scalar="eval/loss") == 1
    assert seen(NONFINITE, scalar="loss") == 0


def test_a_finite_sum_of_values_that_are_not_finite_hides_none(recorder, scrape):
    recorder.step(a=math.inf, b=-math.inf, c=1.0)
    assert scrape(recorder).total(NONFINITE) == 2


def test_finite_values_of_an_infinite_sum_are_stored(recorder, scrape):
    recorder.step(a=1.7e308, b=1.7e308)
    seen = scrape(recorder)
    assert seen.total(NONFINITE) == 0
    assert seen("paddle_train_scalar", name="b") == 1.7e308


@pytest.mark.parametrize("kind", BAD_ALONE)
def test_an_epoch_that_is_no_number_leaves_the_last_one(recorder, scrape, kind):
    recorder.epoch(3)
    recorder.epoch(BAD[kind])
    seen = scrape(recorder)
    assert seen("paddle_train_epoch") == 3
    assert seen.total(DROPPED) == 1


@pytest.mark.parametrize("kind", BAD_ALONE)
def test_a_reload_to_no_number_leaves_the_global_step(recorder, scrape, kind):
    recorder.step()
    recorder.reload(BAD[kind])
    seen = scrape(recorder)
    assert seen("paddle_train_global_step") == 1
    assert seen.total(DROPPED) == 1


@pytest.mark.parametrize("kind", BAD_ALONE)
def test_a_checkpoint_of_no_duration_is_still_a_checkpoint(recorder, scrape, kind):
    recorder.checkpoint(2.0)
    recorder.checkpoint(BAD[kind])
    seen = scrape(recorder)
    assert seen("paddle_checkpoint_saves_total") == 2
    assert seen("paddle_checkpoint_seconds_total") == 2


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "\0", "\ud800", "\u202e", "a\tb"])
@pytest.mark.parametrize("call", ["step", "log", "eval"])
def test_invalid_names_are_counted_each_time_and_warned_of_once(recorder, scrape, caplog, call, name):
    for _ in range(3):
        getattr(recorder, call)(**{name: 1.0, "good": 2.0})
    seen = scrape(recorder)
    assert seen(DROPPED, reason="invalid_name") == 3
    assert seen("paddle_eval_scalar" if call == "eval" else "paddle_train_scalar", name="good") == 2.0
    assert len(caplog.records) == 1


def test_names_beyond_the_limit_are_counted_and_warned_of_once(recorder, scrape, caplog):
    for i in range(203):
        recorder.step(**{f"s{i}": float(i)})
    seen = scrape(recorder)
    assert seen(DROPPED, reason="too_many") == 3
    assert len([s for s in seen.samples if s.name == "paddle_train_scalar"]) == 200
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "max_scalars" in caplog.text


def test_names_are_taken_up_to_the_limit(recorder, scrape):
    recorder.step(**{f"s{i}": float(i) for i in range(200)})
    seen = scrape(recorder)
    assert seen("paddle_train_scalar", name="s199") == 199.0
    assert seen.total(DROPPED) == 0


def test_known_names_are_taken_beyond_the_limit(recorder, scrape):
    recorder.step(**{f"s{i}": float(i) for i in range(250)})
    recorder.step(loss=1.0, learning_rate=2.0, samples=3)
    recorder.eval(loss=4.0)
    seen = scrape(recorder)
    assert (seen("paddle_train_loss"), seen("paddle_train_learning_rate"), seen("paddle_eval_loss")) == (1.0, 2.0, 4.0)
    assert seen("paddle_train_samples_total") == 3


def test_the_limit_is_a_setting(scrape):
    recorder = Recorder(PageWriter(None, {}), max_scalars=2)
    recorder.log(a=1, b=2, c=3, loss=4)
    seen = scrape(recorder)
    assert [seen("paddle_train_scalar", name=name) for name in "abc"] == [1, 2, None]
    assert seen("paddle_train_loss") == 4


def test_long_names_of_the_limit_s_number_leave_room_for_known_ones(recorder, scrape):
    for i in range(200):
        recorder.log(**{f"{i:03d}" + "😀" * 125: float(i)})
    recorder.step(loss=1.0, learning_rate=2.0, grad_norm=3.0, samples=5)
    recorder.eval(loss=4.0)
    seen = scrape(recorder)
    assert (seen("paddle_train_loss"), seen("paddle_train_learning_rate"), seen("paddle_eval_loss")) == (1.0, 2.0, 4.0)
    assert seen("paddle_train_samples_total") == 5


def test_ever_new_combinations_of_names_do_not_fill_the_memory(recorder, scrape):
    for i in range(3000):
        recorder.log(**{f"s{i % 61}": 1.0, f"t{i % 59}": 2.0})
    assert len(recorder._table.layouts[LOG]) <= 1000
    assert scrape(recorder).total(DROPPED) == 0


# --- detectors --------------------------------------------------------------------------------------------------


def losses(jump):
    return [2.0 + 0.01 * (i % 5) for i in range(100)] + [2.0 * jump] * 10


@pytest.mark.parametrize("call", ["step", "log"])
def test_a_jump_of_the_loss_is_a_spike(recorder, scrape, call):
    for loss in losses(2.0):
        getattr(recorder, call)(loss=loss)
    recorder._last_words()
    assert scrape(recorder)("paddle_train_spikes_total", scalar="loss") == 1


def test_a_spike_of_logged_values_is_seen_before_the_end(recorder, scrape):
    for loss in losses(2.0) * 3:
        recorder.log(loss=loss)
    assert scrape(recorder)("paddle_train_spikes_total", scalar="loss") >= 1


def test_values_that_wait_for_a_detector_do_not_fill_the_memory(recorder):
    for _ in range(5000):
        recorder.log(loss=1.0)
    assert len(recorder._table.pending["loss"]) < 1000


def test_no_spike_is_seen_after_a_reload(recorder, scrape):
    for loss in losses(1.0):
        recorder.step(loss=loss)
    recorder.reload(5)
    for _ in range(10):
        recorder.step(loss=9.0)
    recorder._last_words()
    assert scrape(recorder)("paddle_train_spikes_total", scalar="loss") == 0


def test_values_that_are_not_finite_do_not_blind_the_detector(recorder, scrape):
    for loss in losses(2.0):
        recorder.step(loss=loss)
        recorder.step(loss=math.nan)
    recorder._last_words()
    assert scrape(recorder)("paddle_train_spikes_total", scalar="loss") == 1


@pytest.mark.parametrize(
    "values", [[0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 1e200], [5e-324, 1.7e308], [-1e308, 1e308], [0.0, 5e-324]]
)
def test_steps_are_counted_whatever_the_loss(recorder, scrape, values):
    for i in range(300):
        recorder.step(loss=values[0] if i < 100 else values[-1], grad_norm=values[i % len(values)])
    recorder._last_words()
    seen = scrape(recorder)
    assert seen(STEPS) == 300
    assert seen.total(DROPPED) == 0
    assert all(math.isfinite(sample.value) for sample in seen.samples)


# --- a model of all of it ---------------------------------------------------------------------------------------

finite = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**300), 10**300), st.booleans())
junk = st.one_of(
    finite,
    finite,
    st.sampled_from(list(BAD.values())),
    st.binary(max_size=3),
    st.tuples(st.floats()),
)
names = st.one_of(
    st.sampled_from(["loss", "learning_rate", "grad_norm", "loss_scale", "a", "b", "samples", "tokens", "self", ""]),
    st.text(min_size=0, max_size=4),
)
calls = st.lists(
    st.tuples(st.sampled_from(["step", "log", "eval", "bind"]), st.dictionaries(names, junk, max_size=5)), max_size=25
)
KNOWN = {
    "loss": "paddle_train_loss",
    "learning_rate": "paddle_train_learning_rate",
    "grad_norm": "paddle_train_grad_norm",
    "loss_scale": "paddle_train_loss_scale",
}


MOST = 1e15  # samples or tokens of a step


def usable(value):
    """Whether value is a number, and whether it is finite."""
    try:
        number = float(value) if isinstance(value, (int, float)) else None
    except OverflowError:
        return False, False
    return number is not None, number is not None and math.isfinite(number)


class Model:
    """What should be exposed, told simply."""

    def __init__(self):
        self.gauges = {}
        self.steps = self.bad = self.samples = self.tokens = 0

    def take(self, call, scalars):
        counted = call in ("step", "bind")
        self.steps += counted
        for name, value in scalars.items():
            number, good = usable(value)
            valid = 0 < len(name) <= 128 and name.isprintable()
            if not (valid and number and good):
                self.bad += 1
            elif counted and name in ("samples", "tokens"):
                amount = float(value)
                setattr(self, name, getattr(self, name) + (amount if 0.0 < amount < MOST else 0.0))
            elif call == "eval":
                key = ("paddle_eval_loss",) if name == "loss" else ("paddle_eval_scalar", name)
                self.gauges[key] = float(value)
            else:
                key = (KNOWN[name],) if name in KNOWN else ("paddle_train_scalar", name)
                self.gauges[key] = float(value)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(sequence=calls)
def test_any_calls_expose_what_a_simple_model_says(scrape, caplog, sequence):
    caplog.set_level(logging.CRITICAL, "paddle_exporter")
    recorder, model = Recorder(PageWriter(None, {"run": "r", "rank": "0"})), Model()
    for call, scalars in sequence:
        if call == "bind":
            recorder.bind(*scalars)(*scalars.values())
        else:
            getattr(recorder, call)(**scalars)
        model.take(call, scalars)
    recorder._last_words()
    seen = scrape(recorder)
    gauges = {
        (s.name, *[v for k, v in s.labels.items() if k == "name"]): s.value
        for s in seen.samples
        if s.name in {*KNOWN.values(), "paddle_train_scalar", "paddle_eval_loss", "paddle_eval_scalar"}
    }
    assert gauges == model.gauges
    assert seen(STEPS) == model.steps
    assert seen.total(DROPPED) + seen.total(NONFINITE) == model.bad
    assert seen("paddle_train_samples_total") == model.samples
    assert seen("paddle_train_tokens_total") == model.tokens
    assert all(math.isfinite(s.value) for s in seen.samples)


# --- threads ----------------------------------------------------------------------------------------------------


@pytest.fixture
def _impatient():
    """Threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(*functions):
    ready = threading.Barrier(len(functions))

    def go(function):
        ready.wait()
        function()

    threads = [threading.Thread(target=go, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python 3.9 may take turns in the middle of a count")
@pytest.mark.usefixtures("_impatient")
def test_steps_of_threads_at_once_are_all_counted(recorder, scrape):
    in_threads(*[lambda: [recorder.step(samples=1, loss=1.0) for _ in range(5000)] for _ in range(4)])
    seen = scrape(recorder)
    assert seen(STEPS) == 20_000


@pytest.mark.usefixtures("_impatient")
def test_values_that_threads_drop_at_once_are_all_counted(recorder, scrape):
    in_threads(*[lambda: [recorder.log(loss=math.nan, x="x") for _ in range(5000)] for _ in range(4)])
    seen = scrape(recorder)
    assert seen(NONFINITE, scalar="loss") == 20_000
    assert not_a_number(seen) == 20_000


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python 3.9 may take turns in the middle of a count")
def test_threads_that_step_with_different_names_mix_up_no_values_and_lose_no_step(recorder, scrape):
    names = [f"s{n}" for n in range(4)]
    recorder.step(**{name: float(n) for n, name in enumerate(names)})
    wrong, running = [], [True]

    def watch():
        while running:
            for n, name in enumerate(names):
                seen = scrape(recorder)("paddle_train_scalar", name=name)
                if seen != n:
                    wrong.append((name, seen))

    def steps(n):
        for _ in range(30_000):
            recorder.step(**{names[n]: float(n)})

    watcher = threading.Thread(target=watch)
    watcher.start()
    in_threads(*[lambda n=n: steps(n) for n in range(4)])
    running.clear()
    watcher.join()
    assert wrong == []
    assert scrape(recorder)(STEPS) == 120_001


@pytest.mark.usefixtures("_impatient")
def test_new_names_of_threads_at_once_are_each_taken_once(recorder, scrape):
    in_threads(*[lambda: [recorder.log(**{f"s{i}": float(i)}) for i in range(100)] for _ in range(4)])
    seen = scrape(recorder)
    assert {s.labels["name"]: s.value for s in seen.samples if s.name == "paddle_train_scalar"} == {
        f"s{i}": float(i) for i in range(100)
    }
    assert seen.total(DROPPED) == 0


@pytest.mark.usefixtures("_impatient")
def test_a_page_is_readable_when_the_threads_that_committed_it_have_stopped(recorder, scrape):
    for _ in range(50):
        in_threads(*[lambda: [recorder.log(x=1.0) for _ in range(50)] for _ in range(4)])
        assert scrape(recorder)("paddle_train_scalar", name="x") == 1.0
