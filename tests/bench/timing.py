"""Times of things that take turns in one process, so that whatever slows the machine down slows all of them down."""

from __future__ import annotations

import gc
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable

Case = Callable[[list], None]
"""Does it once for each of the losses it is given."""

_noise = random.Random(1)
_LOSSES = [2.0 * _noise.lognormvariate(0.0, 0.05) for _ in range(1000)]


def losses(count: int) -> list[float]:
    """``count`` losses of a training that goes well."""
    return (_LOSSES * (count // len(_LOSSES) + 1))[:count]


def page_directory() -> Path:
    """A new directory for pages, where pages usually are: in memory, if there is such a place."""
    return Path(tempfile.mkdtemp(dir=os.environ["BENCH_PAGES"]))


@dataclass
class Line:
    """One line of the report. ``limit`` is the budget, for ``judged``: the ratio, or else the median in ``unit``."""

    part: str
    what: str
    unit: str = ""
    median: float | None = None
    minimum: float | None = None
    reference: str = ""
    ratio: float | None = None
    low: float | None = None  # of a 95 % confidence interval of the ratio, or of the median where there is none
    high: float | None = None
    limit: float | None = None
    judged: str = "median"
    note: str = ""
    skipped: str = ""

    @property
    def excess(self) -> float | None:
        """How many times the budget it is; at most 1 where the budget is held."""
        value = self.ratio if self.judged == "ratio" else self.median
        return None if self.limit is None or value is None else value / self.limit

    def as_json(self) -> dict[str, Any]:
        """Plain values, the verdict included."""
        held = None if self.excess is None else self.excess <= 1.0
        return {**asdict(self), "held": held, "excess": self.excess}


class Turns:
    """Times ``cases``, each in blocks of about ``block`` seconds, which take turns."""

    def __init__(self, cases: dict[str, Case], block: float = 0.003, rest: Sequence[str] = ()) -> None:
        self.cases = cases
        self.times: dict[str, list[float]] = {name: [] for name in cases}
        self._rest = rest  # these work on in threads of theirs; others' blocks begin when that is over
        self._counts = {name: self._fitting(case, block) for name, case in cases.items()}

    @staticmethod
    def _fitting(case: Case, block: float) -> int:
        """How many times fill a block. The first times are no measure: things are made and imported in them."""
        case(losses(10))
        count = 1
        while True:
            given = losses(count)
            started = time.perf_counter()
            case(given)
            took = time.perf_counter() - started
            if took > block / 4 or count > 10**7:
                return max(1, round(count * block / took))
            count *= 4

    def go(self, seconds: float, at_least: int = 5) -> Turns:
        """Let them take turns for ``seconds``, each in its turn being the first."""
        names = list(self.cases)
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(self.times[names[0]]) < at_least:
            names = names[1:] + names[:1]
            for name in names:
                self.times[name].append(self._block(name))
        return self

    def _block(self, name: str) -> float:
        count, case = self._counts[name], self.cases[name]
        given = losses(count)
        gc.collect(0)
        started = time.perf_counter()
        case(given)
        took = time.perf_counter() - started
        if name in self._rest:
            _settle()
        return took / count

    def line(self, part: str, name: str, reference: str, unit: str = "us", **more: Any) -> Line:
        """How ``name`` did beside ``reference``."""
        scale = {"us": 1e6, "ms": 1e3}[unit]
        times = self.times[name]
        line = Line(part, name, unit, statistics.median(times) * scale, min(times) * scale, **more)
        if reference and reference != name:
            ratios = [mine / other for mine, other in zip(times, self.times[reference])]
            line.reference, line.ratio = reference, statistics.median(ratios)
            line.low, line.high = interval(ratios)
        return line


def _settle() -> None:
    """Wait until threads of this process have done what they were left to do."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.005)
        if time.process_time() - before < 0.0003:
            return


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % confidence interval of the median of ``values``: two of them, whatever their distribution."""
    ordered = sorted(values)
    reach = 0.98 * len(ordered) ** 0.5
    low = int(max(len(ordered) / 2 - reach, 0))
    return ordered[low], ordered[-1 - low]
