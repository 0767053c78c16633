"""What the ranks' pages say: also of a rank that hangs, or was killed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import Metric

from .. import catalogue
from ..collectors.ranks import RankCollector
from ..page import PageError
from ..page_reader import PageReader

ALIVE = ("starting", "running")
"""States of a rank whose process lives."""

_QUIET = 2.0  # seconds without a step, after which it is worth saying what a rank waits in

Values = dict[tuple[str, str], float]
"""(metric, its label beyond run and rank, or "") -> value."""


@dataclass(frozen=True)
class RankView:
    """One rank at one moment; None is what it has not told. Times are Unix times."""

    rank: int
    state: str
    waits_in: str = ""  # the phase it is in, if it has been there for some seconds
    started: float | None = None
    last_step: float | None = None
    steps: int = 0
    target_steps: int | None = None
    samples_per_second: float | None = None
    step_seconds: float | None = None
    loss: float | None = None
    nonfinite_losses: int = 0
    accuracy: float | None = None

    @property
    def alive(self) -> bool:
        """Whether its process lives, and has more to tell."""
        return self.state in ALIVE


class Ranks:
    """Reads the pages in ``directory``, those that appear later too."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._readers: dict[Path, PageReader] = {}
        self._collect = RankCollector(self._readers.values)
        self._phases: dict[int, Values] = {}

    def read(self) -> list[RankView]:
        """All ranks there are, in order."""
        for path in sorted(self._directory.glob("*.page")):
            if path not in self._readers:
                try:
                    self._readers[path] = PageReader(path)
                except PageError:
                    continue  # it is being made; next time
        views = []
        for rank, values in sorted(_by_rank(self._collect()).items()):
            phases = {key: value for key, value in values.items() if key[0] == catalogue.PHASE_SECONDS.name}
            views.append(_view(rank, values, self._waits_in(rank, values, phases)))
            self._phases[rank] = phases
        return views

    def _waits_in(self, rank: int, values: Values, phases: Values) -> str:
        """The phase that grew most since the last look, if no step ended for some time."""
        last = values.get((catalogue.LAST_STEP.name, ""))
        before = self._phases.get(rank)
        if last is None or not before or time.time() - last < _QUIET:
            return ""
        return max(phases, key=lambda key: phases[key] - before.get(key, 0.0))[1]

    def close(self) -> None:
        """Close the pages."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


def _by_rank(families: Iterable[Metric]) -> dict[int, Values]:
    ranks: dict[int, Values] = {}
    for family in families:
        for sample in family.samples:
            labels = dict(sample.labels)
            rank, _ = labels.pop("rank", ""), labels.pop("run", "")
            if rank.isdigit() and len(labels) < 2:
                ranks.setdefault(int(rank), {})[sample.name, "".join(labels.values())] = sample.value
    return ranks


def _view(rank: int, values: Values, waits_in: str) -> RankView:
    def value(metric: catalogue.Metric, label: str = "") -> float | None:
        return values.get((metric.name, label))

    state = next((state for state in catalogue.STATES if value(catalogue.RUN_STATE, state) == 1.0), "starting")
    target = value(catalogue.TARGET_STEPS)
    count = values.get((f"{catalogue.STEP_DURATION.name}_count", "")) or 0.0
    return RankView(
        rank=rank,
        state=state,
        waits_in=waits_in if state in ALIVE else "",
        started=value(catalogue.RUN_START),
        last_step=value(catalogue.LAST_STEP),
        steps=int(value(catalogue.STEPS) or 0),
        target_steps=None if target is None else int(target),
        samples_per_second=value(catalogue.SAMPLES_PER_SECOND),
        step_seconds=values[f"{catalogue.STEP_DURATION.name}_sum", ""] / count if count else None,
        loss=value(catalogue.LOSS),
        nonfinite_losses=int(value(catalogue.NONFINITE, "loss") or 0),
        accuracy=value(catalogue.EVAL_SCALAR, "acc"),
    )
