"""The guard around collectors: one that fails, or is slow, is seen as that, and takes nothing else with it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Callable

from prometheus_client.core import Metric

from .. import catalogue
from .families import Families

log = logging.getLogger("paddle_exporter")

Collect = Callable[[], Iterable[Metric]]


class Guard:
    """A registry's one collector: runs each of ``collectors``, by name, times it and isolates it."""

    def __init__(self, collectors: Mapping[str, Collect], clock: Callable[[], float] = time.perf_counter) -> None:
        self._collectors = dict(collectors)
        self._clock = clock
        self._failing: dict[str, bool] = {}
        self._lock = threading.Lock()

    def describe(self) -> list[Metric]:
        """Nothing: without this, registering would collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The families of all collectors, then how each of them did."""
        own = Families()
        for name, collect in self._collectors.items():
            started = self._clock()
            error: Exception | None = None
            try:
                # A list: a collector that fails halfway must not leave half of its families behind.
                yield from list(collect())
            except Exception as caught:
                error = caught
            own.add(catalogue.COLLECTOR_SUCCESS, [name], float(error is None))
            own.add(catalogue.COLLECTOR_DURATION, [name], self._clock() - started)
            self._report(name, error)
        yield from own

    def _report(self, name: str, error: Exception | None) -> None:
        """Log a change of state, not every scrape."""
        with self._lock:
            changed = self._failing.get(name, False) != (error is not None)
            self._failing[name] = error is not None
        if changed and error is not None:
            log.warning("collector %s fails, its metrics are missing: %s: %s", name, type(error).__name__, error)
        elif changed:
            log.warning("collector %s works again", name)
