"""Detectors on a stream of numbers: constant memory, constant time a value."""

from __future__ import annotations

from collections.abc import Iterable
from math import e, log, log2, sqrt

# Bounds whose squares are numbers still.
_HUGE = 1e150
_TINY = 1e-140


class SpikeDetector:
    """Sees a level that jumps up and stays up for some values; single outliers, which healthy runs have, it forgives.

    Each value x > 0 is taken as its logarithm, so that the same numbers fit a loss of 8 and of 0.08; from the first
    value that is not positive on, values are taken as they are. z is its distance from a moving average in
    moving standard deviations. A spike is z >= 6 and a rise of at least 10 % in 3 of the last 5 values. An outlier
    beyond 3 sigma does not move the averages, but for no more than 5 values in a row: then the level has changed, and
    is followed in clipped steps. Figures on real histories: DESIGN.md.
    """

    VARIANCE_RATE = 0.05
    Z = 6.0
    HOLD = 5
    LOG_SCALE = log2(e)  # math.log2 costs half of math.log until Python 3.12; bounds are in units of ln

    def __init__(
        self, mean_rate: float = 0.2, sigma_floor: float = 0.005, rise: float = 1.1, warm_up: int = 20
    ) -> None:
        self.mean_rate = mean_rate
        self.sigma_floor = sigma_floor  # of ln(x)
        self.rise = log(rise)
        self.warm_up = warm_up  # values until the first spike can be
        self._settled = max(warm_up, 40) + 1  # from when on the rates are not raised by 2 / (values + 1) any longer
        self.reset()

    @classmethod
    def for_norms(cls) -> SpikeDetector:
        """One for norms of gradients, which scatter by far more than losses."""
        return cls(mean_rate=0.1, sigma_floor=0.02, rise=2.0, warm_up=50)

    def reset(self) -> None:
        """Forget everything: after a restart from a checkpoint, or when the level is known to change."""
        self._seen = 0
        self._difference = 0.0
        self._squared_sigma = 1.0
        self._mean = 0.0
        self._variance = 0.0
        self._held = 0
        self._recent = 0  # bit i: the value i values ago was high
        self._spiking = False
        self._raw = False

    def update(self, values: Iterable[float]) -> int:
        """Take finite ``values`` in their order; returns how many spikes began among them."""
        mean_rate, rate, rest = self.mean_rate, self.VARIANCE_RATE, 1.0 - self.VARIANCE_RATE
        floor = (self.sigma_floor * self.LOG_SCALE) ** 2
        began = 0
        mean, variance, usual = self._mean, self._variance, self._usual()
        difference, squared_sigma = self._difference, self._squared_sigma
        for value in values:
            if usual and value > 0.0:  # nearly always: does what _take does, at a quarter of the cost
                difference = log2(value) - mean
                square = difference * difference
                if square <= 9.0 * variance or square <= 9.0 * floor:
                    squared_sigma = variance
                    mean += mean_rate * difference
                    variance = rest * (variance + rate * square)
                    continue
            self._mean, self._variance = mean, variance
            began += self._take(value)
            mean, variance, usual = self._mean, self._variance, self._usual()
            difference, squared_sigma = self._difference, self._squared_sigma
        self._mean, self._variance = mean, variance
        self._difference, self._squared_sigma = difference, max(squared_sigma, floor) if usual else squared_sigma
        return began

    def _usual(self) -> bool:
        return self._seen >= self._settled and not (self._raw or self._recent or self._held)

    def _take(self, value: float) -> bool:
        """Take one value, whatever it is; returns whether a spike begins with it."""
        if value <= 0.0 and not self._raw:
            self.reset()
            self._raw = True
        x = max(min(value, _HUGE), -_HUGE) if self._raw else log2(value)
        self._seen = seen = self._seen + 1
        if seen == 1:
            self._mean = x
        scale = max(abs(self._mean), _TINY) if self._raw else self.LOG_SCALE
        difference = x - self._mean
        square = difference * difference
        variance = max(self._variance, self.sigma_floor * self.sigma_floor * scale * scale)
        self._difference = difference
        self._squared_sigma = variance
        began = False
        if square > 9.0 * variance or self._recent:
            z = difference / sqrt(variance)
            began = self._judge(z, difference / scale)
            self._held = self._held + 1 if abs(z) > 3.0 else 0
            if 0 < self._held <= self.HOLD:
                return began
            if self._held:
                difference *= 3.0 / abs(z)
                square = difference * difference
        else:
            self._held = 0
        floor = 2.0 / (seen + 1)
        rate = self.VARIANCE_RATE if floor < self.VARIANCE_RATE else floor
        self._mean += difference * (self.mean_rate if floor < self.mean_rate else floor)
        self._variance = (1.0 - rate) * (self._variance + rate * square)
        return began

    @property
    def z(self) -> float:
        """Distance of the last value from the average before it, in standard deviations; 0 during warm-up."""
        return self._difference / sqrt(self._squared_sigma) if self._seen > self.warm_up else 0.0

    def _judge(self, z: float, rise: float) -> bool:
        """Whether a spike begins with this value: it is the third high one of five, and none was on."""
        high = self._seen > self.warm_up and z >= self.Z and rise >= self.rise
        self._recent = (self._recent << 1 | high) & 0b11111
        was, self._spiking = self._spiking, bin(self._recent).count("1") >= 3
        return self._spiking and not was
