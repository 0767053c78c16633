"""Detectors on a stream of numbers: constant memory, constant time a value."""

from __future__ import annotations

from math import isfinite, log, sqrt
from typing import Iterable


class SpikeDetector:
    """Sees a level that jumps up and stays up for some values; single outliers, which healthy runs have, it forgives.

    Each value x > 0 is taken as ln(x), so that the same numbers fit a loss of 8 and of 0.08; from the first
    value that is not positive on, values are taken as they are. z is its distance from a moving average in moving standard
    deviations. A spike is z >= 6 and a rise of at least 10 % in 3 of the last 5 values. An outlier beyond 3
    sigma does not move the averages, but for no more than 5 values in a row: then the level has changed, and is
    followed in clipped steps. Figures on 145 public histories: DESIGN.md.
    """

    MEAN_RATE = 0.2
    VARIANCE_RATE = 0.05
    SIGMA_FLOOR = 0.005
    WARM_UP = 20
    Z = 6.0
    RISE = log(1.1)
    HOLD = 5

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: after a restart from a checkpoint, or when the level is known to change."""
        self.z = 0.0
        self._seen = 0
        self._mean = 0.0
        self._variance = 0.0
        self._held = 0
        self._recent = 0  # bit i: the value i values ago was high
        self._spiking = False
        self._raw = False

    def update(self, values: Iterable[float]) -> int:
        """Take finite ``values`` in their order; returns how many spikes began among them."""
        began = 0
        for value in values:
            if not isfinite(value):
                continue
            if value <= 0.0 and not self._raw:
                self.reset()
                self._raw = True
            x = value if self._raw else log(value)
            seen = self._seen = self._seen + 1
            if seen == 1:
                self._mean = x
                continue
            difference = x - self._mean
            sigma = max(sqrt(self._variance), self.SIGMA_FLOOR * (abs(self._mean) if self._raw else 1.0), 1e-300)
            z = difference / sigma if seen > self.WARM_UP else 0.0
            self.z = z
            rise = self.RISE * (abs(self._mean) if self._raw else 1.0)
            self._recent = (self._recent << 1 | (z >= self.Z and difference >= rise)) & 0b11111
            if self._recent:
                high = bin(self._recent).count("1") >= 3
                began += high and not self._spiking
                self._spiking = high
            else:
                self._spiking = False
            if abs(z) > 3.0:
                self._held += 1
                if self._held <= self.HOLD:
                    continue
                difference = 3.0 * sigma if difference > 0 else -3.0 * sigma
            else:
                self._held = 0
            floor = 2.0 / (seen + 1)
            self._mean += max(self.MEAN_RATE, floor) * difference
            rate = max(self.VARIANCE_RATE, floor)
            self._variance = (1.0 - rate) * (self._variance + rate * difference * difference)
        return began
