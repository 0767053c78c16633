"""Metrics of ranks, from their pages. The same code serves one page in its own process, and many in the agent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Callable, Protocol

from prometheus_client.core import Metric

from .. import catalogue
from ..catalogue import NOT_A_STEP, PHASES, STATES, STEP_BUCKETS
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
        self._phases: dict[Page, dict[str, float]] = {}  # as last shown

    def __call__(self) -> Iterator[Metric]:
        """Fresh families of all pages that can be read; those that cannot are counted by reason."""
        families = Families()
        errors: Counter[str] = Counter()
        phases: dict[Page, dict[str, float]] = {}
        for page in self._pages():
            try:
                now = self._clock()  # before the page is read: what it says is never older, so no counter falls
                rank = Rank(page.read())
            except PageError as error:
                errors[error.reason] += 1
            except OSError:
                errors["unreadable"] += 1
            except (
                LookupError,
                ValueError,
                ArithmeticError,
            ):  # unharmed, but of another version
                errors["version"] += 1
            else:
                _add_rank(families, rank, now)
                # A phase counts while it is open, by our clock. What the loop, or its end, then makes of it may be a
                # little less; a counter that falls would be taken for one that began anew.
                shown = self._phases.get(page, {})
                phases[page] = {
                    name: max(value, shown.get(name, 0.0)) for name, value in rank.phases_until(now).items()
                }
                for name in PHASES:
                    families.add(catalogue.PHASE_SECONDS, [*rank.labels, name], phases[page][name])
        self._phases = phases
        for reason in _ERRORS:
            families.add(catalogue.PAGE_ERRORS, [reason], errors[reason])
        yield from families


class Rank:
    """A commit of a page, sorted: what is a metric as it is, and what metrics are derived from."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.info = {name: str(value) for name, value in snapshot.info.items()}
        self.labels = [self.info.get("run", ""), self.info.get("rank", "")]
        self.world_size = float(self.info.get("world_size", "nan"))
        self.state = state(snapshot)
        self.raw: dict[str, float] = {}
        self.phases: dict[str, float] = {}
        self.plain: list[tuple[catalogue.Metric, tuple[str, ...], float]] = []
        buckets: dict[str, float] = {}
        for name, labels, value in snapshot:
            if name.startswith("_"):
                self.raw[name] = value
            elif name == catalogue.STEP_DURATION.name:
                buckets[labels[0]] = value
            elif name == catalogue.PHASE_SECONDS.name:
                self.phases[labels[0]] = value
            elif name in _KNOWN:
                self.plain.append((_KNOWN[name], labels, value))
        self.totals = {metric.name: value for metric, _, value in self.plain}
        self.durations = [buckets[bound] for bound in [*map(repr, STEP_BUCKETS), "+Inf"]]
        self.duration_sum = buckets["sum"]
        index = self.raw["_phase"]
        self.open_phase = PHASES[:-1][int(index)] if index == index else ""
        self.alive = snapshot.alive
        self.last_step = self.raw["_last_step"]  # monotonic seconds, 0 before the first

    def until(self, now: float) -> float:
        """Up to when this rank's time is accounted for: now, its end, or the last that is known of a dead one."""
        end, since = self.raw["_end"], self.raw["_phase_since"]
        if end == end:
            return end
        known = max(self.last_step, self.raw["_start"], since if since == since else 0.0)
        return max(now, known) if self.alive else known

    def phases_until(self, now: float) -> dict[str, float]:
        """Seconds by phase; the open one has run until now, and what is in none is "other"."""
        until = self.until(now)
        phases = dict(self.phases)
        if self.open_phase:
            phases[self.open_phase] += max(until - self.raw["_phase_since"], 0.0)
        phases["other"] = max(until - self.raw["_start"] - sum(phases.values()), 0.0)
        return phases


def state(snapshot: Snapshot) -> str:
    """The run state of a rank: what its page says, unless its process ended without a word."""
    if snapshot.alive or snapshot.state not in ("starting", "running"):
        return snapshot.state
    return "killed" if snapshot.terminated else "vanished"


def _add_rank(families: Families, rank: Rank, now: float) -> None:
    raw, labels = rank.raw, rank.labels
    families.info(catalogue.RUN_INFO, rank.info)
    families.add(catalogue.RUN_START, labels, raw["_start"] + raw["_clock"])
    families.add(catalogue.RUN_WORLD_SIZE, labels, rank.world_size)
    for name in STATES:
        families.add(catalogue.RUN_STATE, [*labels, name], float(name == rank.state))
    for metric, more, value in rank.plain:
        families.add(metric, [*labels, *more], value)
    families.add(catalogue.GLOBAL_STEP, labels, rank.totals[catalogue.STEPS.name] + raw["_step_offset"])
    if rank.last_step:
        families.add(catalogue.LAST_STEP, labels, rank.last_step + raw["_clock"])
    until = rank.until(now)
    _add_throughput(families, rank, until)
    families.histogram(catalogue.STEP_DURATION, labels, rank.durations, rank.duration_sum)


def _add_throughput(families: Families, rank: Rank, until: float) -> None:
    """Samples and tokens per second since the older mark, up to the last step, or up to now when steps stay away."""
    if not rank.last_step:
        return
    since = rank.raw["_older_mark_time"]
    elapsed = max(rank.last_step, rank.raw["_counted"]) - since
    if rank.open_phase not in NOT_A_STEP and until - rank.last_step > max(2.0 * elapsed, 5.0):
        elapsed = until - since
    for metric, counter, mark in (
        (catalogue.SAMPLES_PER_SECOND, catalogue.SAMPLES, "_older_mark_samples"),
        (catalogue.TOKENS_PER_SECOND, catalogue.TOKENS, "_older_mark_tokens"),
    ):
        if elapsed > 0.0:
            families.add(metric, rank.labels, (rank.totals[counter.name] - rank.raw[mark]) / elapsed)
