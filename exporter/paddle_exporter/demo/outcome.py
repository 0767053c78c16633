"""What a demo came to: the report, and whether it did what it should."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .alerts import Alert
from .job import Moment
from .ranks import RankView

WANTED = {"nan": ("LossNonFinite",), "crash": ("RunFailed", "RankMissing"), "hang": ("TrainingStalled",)}
"""Alerts of which one must name the rank that a fault struck."""


@dataclass
class Outcome:
    """Everything the summary says. ``fault`` is the kind asked for, ``moment`` when it struck."""

    ranks: int
    fault: str | None
    status: int | None = None
    views: list[RankView] = field(default_factory=list)
    moment: Moment | None = None
    alerts: list[Alert] = field(default_factory=list)
    series: int | None = None
    scrape_seconds: float | None = None

    @property
    def training_seconds(self) -> float | None:
        """From the first rank's start to the last rank's last step."""
        starts = [view.started for view in self.views if view.started is not None]
        steps = [view.last_step for view in self.views if view.last_step is not None]
        return max(steps) - min(starts) if starts and steps else None

    def after_fault(self, alert: Alert) -> float | None:
        """Seconds from the fault until ``alert`` was with Alertmanager (or, if it never was, fired)."""
        if self.moment is None:
            return None
        return (alert.fired if alert.delivered is None else alert.delivered) - self.moment.time

    def report(self) -> dict[str, Any]:
        """The summary for machines."""
        return {
            "ranks": [
                {
                    "rank": view.rank,
                    "steps": view.steps,
                    "samples_per_second": _rounded(view.samples_per_second, 1),
                    "loss": _rounded(view.loss, 6),
                    "accuracy": _rounded(view.accuracy, 4),
                }
                for view in self.views
            ],
            "fault": None if self.fault is None else {"kind": self.fault, "rank": self.ranks - 1},
            "alerts": [
                {
                    "name": alert.name,
                    "run": alert.run,
                    "rank": alert.rank,
                    "seconds_after_fault": _rounded(self.after_fault(alert), 2),
                }
                for alert in self.alerts
            ],
            "series": self.series,
            "scrape_seconds": _rounded(self.scrape_seconds, 6),
            "training_seconds": _rounded(self.training_seconds, 2),
        }

    def write(self, path: Path) -> None:
        """Write the report."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.report(), indent=2) + "\n", encoding="utf-8")

    def wanted(self) -> Alert | None:
        """The alert that names the struck rank, if it was delivered."""
        if self.fault is None or self.moment is None:
            return None
        for alert in self.alerts:
            if alert.name in WANTED[self.fault] and alert.rank == self.moment.rank and alert.delivered is not None:
                return alert
        return None

    def problems(self) -> list[str]:
        """Why the demo did not do what it should; empty if it did."""
        found = []
        if self.fault != "crash":
            if self.status != 0:
                found.append(f"training failed: the launcher ended with status {self.status}")
            found += [
                f"rank {view.rank} is {view.state}, not finished" for view in self.views if view.state != "finished"
            ]
        told = {view.rank for view in self.views}
        found += [f"rank {rank} told nothing" for rank in range(self.ranks) if rank not in told]
        if not self.series:
            found.append("Prometheus has no series of the run")
        if self.fault is None:
            found += [f"{_name(alert)} fired, and nothing was wrong" for alert in self.alerts]
        elif self.moment is None:
            found.append(f"the fault ({self.fault}) did not happen")
        elif self.wanted() is None:
            names = " or ".join(WANTED[self.fault])
            found.append(f"no alert {names} for rank {self.moment.rank} reached Alertmanager")
        return found

    def failed_ranks(self) -> list[int]:
        """Ranks whose logs tell most about a failure: those that raised, else those that ended otherwise."""
        states: Mapping[int, str] = {view.rank: view.state for view in self.views}
        raised = [rank for rank, state in states.items() if state == "failed"]
        return raised or [rank for rank in range(self.ranks) if states.get(rank) != "finished"]


def _name(alert: Alert) -> str:
    return alert.name if alert.rank is None else f"{alert.name} (rank {alert.rank})"


def _rounded(number: float | None, digits: int) -> float | None:
    return None if number is None else round(number, digits)
