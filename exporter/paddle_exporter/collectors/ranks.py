"""Metrics of ranks, from their pages. The same code serves one page in its own process, and many in the agent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Callable, Protocol

from prometheus_client.core import Metric

from .. import catalogue
from ..catalogue import PHASES, STATES, STEP_BUCKETS
from ..page import PageError
from ..page_reader import Snapshot
from .families import Families

_KNOWN = {metric.name: metric for metric in catalogue.metrics()}
_ERRORS = ("corrupted", "foreign", "truncated", "unreadable", "version")


class Page(Protocol):
    """What can be read: a PageReader or an OwnPageReader."""

    def read(self) -> Snapshot:
        """The newest commit, or PageError."""


class RankCollector:
    """``pages`` gives the pages there are now; ``clock`` is the monotonic clock that the pages' times are of."""

    def __init__(self, pages: Callable[[], Iterable[Page]], clock: Callable[[], float] = time.monotonic) -> None:
        self._pages = pages
        self._clock = clock

    def __call__(self) -> Iterator[Metric]:
        """Fresh families of all pages that can be read; those that cannot are counted by reason."""
        families = Families()
        errors: Counter[str] = Counter()
        for page in self._pages():
            try:
                snapshot = page.read()
            except PageError as error:
                errors[error.reason] += 1
            except OSError:
                errors["unreadable"] += 1
            else:
                _add_rank(families, snapshot, self._clock())
        for reason in _ERRORS:
            families.add(catalogue.PAGE_ERRORS, [reason], errors[reason])
        yield from families


def state(snapshot: Snapshot) -> str:
    """The run state of a rank: what its page says, unless its process ended without a word."""
    if snapshot.alive or snapshot.state not in ("starting", "running"):
        return snapshot.state
    return "killed" if snapshot.terminated else "vanished"


def _add_rank(families: Families, snapshot: Snapshot, now: float) -> None:
    info = {name: str(value) for name, value in snapshot.info.items() if not name.startswith("_")}
    rank = [info.get("run", ""), info.get("rank", "")]
    raw: dict[str, float] = {}
    buckets: dict[str, float] = {}
    phases: dict[str, float] = {}
    plain: list[tuple[catalogue.Metric, tuple[str, ...], float]] = []
    for name, labels, value in snapshot:
        if name.startswith("_"):
            raw[name] = value
        elif name == catalogue.STEP_DURATION.name:
            buckets[labels[0]] = value
        elif name == catalogue.PHASE_SECONDS.name:
            phases[labels[0]] = value
        elif name in _KNOWN:
            plain.append((_KNOWN[name], labels, value))
    ended = raw["_end"] == raw["_end"]
    until = raw["_end"] if ended else now if snapshot.alive else max(raw["_last_step"], raw["_start"])
    totals = {metric.name: value for metric, _, value in plain}

    families.info(catalogue.RUN_INFO, info)
    families.add(catalogue.RUN_START, rank, raw["_start"] + raw["_clock"])
    families.add(catalogue.RUN_WORLD_SIZE, rank, float(info.get("world_size", "nan")))
    current = state(snapshot)
    for name in STATES:
        families.add(catalogue.RUN_STATE, [*rank, name], float(name == current))
    for metric, labels, value in plain:
        families.add(metric, [*rank, *labels], value)
    families.add(catalogue.GLOBAL_STEP, rank, totals[catalogue.STEPS.name] + raw["_step_offset"])
    if raw["_last_step"]:
        families.add(catalogue.LAST_STEP, rank, raw["_last_step"] + raw["_clock"])
    _add_throughput(families, rank, raw, totals, until)
    counts = [buckets[bound] for bound in [*map(repr, STEP_BUCKETS), "+Inf"]]
    families.histogram(catalogue.STEP_DURATION, rank, counts, buckets["sum"])
    _add_phases(families, rank, raw, phases, until)


def _add_throughput(
    families: Families, rank: list[str], raw: dict[str, float], totals: dict[str, float], until: float
) -> None:
    """Samples and tokens per second since the older mark, up to the last step, or up to now when steps stay away."""
    since, last = raw["_older_mark_time"], raw["_last_step"]
    if not last:
        return
    elapsed = last - since
    if _open_phase(raw) not in ("checkpoint", "eval") and until - last > max(2.0 * elapsed, 5.0):
        elapsed = until - since
    for metric, counter, mark in (
        (catalogue.SAMPLES_PER_SECOND, catalogue.SAMPLES, "_older_mark_samples"),
        (catalogue.TOKENS_PER_SECOND, catalogue.TOKENS, "_older_mark_tokens"),
    ):
        if elapsed > 0.0:
            families.add(metric, rank, (totals[counter.name] - raw[mark]) / elapsed)


def _add_phases(
    families: Families, rank: list[str], raw: dict[str, float], phases: dict[str, float], until: float
) -> None:
    """Seconds by phase; the open one has run until now, and what is in none is "other"."""
    current = _open_phase(raw)
    if current:
        phases[current] += max(until - raw["_phase_since"], 0.0)
    phases["other"] = max(until - raw["_start"] - sum(phases.values()), 0.0)
    for phase in PHASES:
        families.add(catalogue.PHASE_SECONDS, [*rank, phase], phases[phase])


def _open_phase(raw: dict[str, float]) -> str:
    index = raw["_phase"]
    return PHASES[int(index)] if index == index else ""
