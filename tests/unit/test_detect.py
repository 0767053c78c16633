"""The spike detector on streams whose shape is known."""

from __future__ import annotations

import math
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_exporter.detect import SpikeDetector


def noisy(n, level=2.0, noise=0.02, seed=1):
    rng = random.Random(seed)
    return [level * math.exp(rng.gauss(0.0, noise)) for _ in range(n)]


def spikes(values):
    return SpikeDetector().update(values)


def test_a_level_that_jumps_is_one_spike():
    assert spikes(noisy(200) + noisy(30, level=6.0)) == 1


def test_a_second_jump_is_a_second_spike():
    assert spikes(noisy(200) + noisy(10, level=6.0) + noisy(200, seed=2) + noisy(10, level=6.0)) == 2


def test_a_constant_stream_has_none():
    assert spikes([2.0] * 500) == 0


def test_noise_has_none():
    assert spikes(noisy(5000)) == 0


def test_a_single_outlier_is_forgiven():
    assert spikes([*noisy(200), 20.0, *noisy(200, seed=2)]) == 0


def test_two_outliers_in_a_row_are_forgiven():
    assert spikes([*noisy(200), 20.0, 20.0, *noisy(200, seed=2)]) == 0


def test_three_high_values_of_five_are_a_spike():
    assert spikes([*noisy(200), 20.0, 2.0, 20.0, 2.0, 20.0, *noisy(50)]) == 1


def test_three_high_values_of_seven_are_none():
    assert spikes([*noisy(200), 20.0, 2.0, 2.0, 20.0, 2.0, 2.0, 20.0, *noisy(50)]) == 0


def test_a_fall_is_none():
    assert spikes(noisy(200) + noisy(100, level=0.1)) == 0


def test_a_rise_below_a_tenth_is_none():
    assert spikes([2.0] * 200 + [2.15] * 20) == 0


def test_a_rise_above_a_tenth_of_a_quiet_stream_is_one():
    assert spikes([2.0] * 200 + [2.3] * 20) == 1


def test_a_slow_rise_is_none():
    assert spikes([value * 1.002**i for i, value in enumerate(noisy(1000))]) == 0


def test_a_normal_descent_is_none():
    assert spikes([8.0 / (1 + 0.02 * i) * v for i, v in enumerate(noisy(2000, level=1.0))]) == 0


def test_nothing_is_a_spike_during_warm_up():
    assert spikes([2.0] * 10 + [20.0] * 8) == 0


def test_a_new_level_is_followed():
    detector = SpikeDetector()
    detector.update(noisy(200) + noisy(300, level=6.0))
    assert abs(detector.z) < 4


def test_the_scale_of_values_does_not_matter():
    values = noisy(200) + noisy(30, level=3.5)
    assert spikes(values) == spikes([v / 100 for v in values]) == spikes([v * 1e6 for v in values]) == 1


def test_values_in_pieces_are_the_same_as_at_once():
    values = noisy(200) + noisy(30, level=6.0)
    detector = SpikeDetector()
    assert sum(detector.update([value]) for value in values) == spikes(values) == 1


def test_a_jump_of_negative_values_is_a_spike():
    rng = random.Random(3)
    assert spikes([-5.0 + rng.gauss(0, 0.05) for _ in range(200)] + [5.0 + rng.gauss(0, 0.05) for _ in range(20)]) == 1


def test_a_jump_from_values_around_zero_is_a_spike():
    rng = random.Random(3)
    assert spikes([rng.gauss(0, 0.05) for _ in range(200)] + [5.0 + rng.gauss(0, 0.05) for _ in range(20)]) == 1


def test_noise_around_zero_has_none():
    rng = random.Random(4)
    assert spikes([rng.gauss(0, 1) for _ in range(5000)]) == 0


def test_a_stream_that_turns_negative_is_learned_anew():
    assert spikes([*noisy(200), -1.0, *noisy(15, level=3.0)]) == 0


def test_forgetting_is_a_fresh_start():
    detector = SpikeDetector()
    detector.update(noisy(200))
    detector.reset()
    assert detector.update(noisy(15, level=50.0)) == 0
    assert detector.z == 0.0


def test_z_is_0_during_warm_up_and_large_at_a_jump():
    detector = SpikeDetector()
    detector.update(noisy(10))
    assert detector.z == 0.0
    detector.update([*noisy(200), 6.0])
    assert detector.z > 20


@pytest.mark.parametrize("outliers", [1, 5])
def test_outliers_do_not_move_the_averages(outliers):
    clean, hit = SpikeDetector(), SpikeDetector()
    clean.update(noisy(200))
    hit.update(noisy(200) + [20.0] * outliers)
    clean.update([2.1])
    hit.update([2.1])
    assert hit.z == clean.z != 0.0


def test_memory_is_constant():
    detector = SpikeDetector()
    detector.update(noisy(100))
    before = {name: sys.getsizeof(value) for name, value in vars(detector).items()}
    detector.update(noisy(100_000))
    assert {name: sys.getsizeof(value) for name, value in vars(detector).items()} == pytest.approx(before, abs=8)


EXTREMES = [0.0, -0.0, 5e-324, -5e-324, 1e-300, 1e-160, 1e160, 1e300, 1.7976931348623157e308, -1.7976931348623157e308]


@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from(EXTREMES), st.floats(allow_nan=False, allow_infinity=False)), st.integers(1, 30)
        ),
        max_size=8,
    )
)
def test_any_finite_values_are_taken(runs):
    detector = SpikeDetector()
    values = [value for value, times in runs for _ in range(times)]
    assert 0 <= detector.update(values) <= len(values)
    assert not math.isnan(detector.z)


@given(st.sampled_from(EXTREMES), st.sampled_from(EXTREMES))
def test_extremes_do_not_blind_the_detector_for_ever(first, second):
    detector = SpikeDetector()
    detector.update([first] * 30 + [second] * 3)
    detector.reset()
    assert detector.update(noisy(200) + noisy(30, level=6.0)) == 1
