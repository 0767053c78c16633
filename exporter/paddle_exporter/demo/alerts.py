"""Which alerts of the run fire, and since when: asked of Prometheus, which judges, and of Alertmanager, which tells."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .local_http import NoAnswerError, get_json


@dataclass
class Alert:
    """An alert that fired. Times are Unix times: when we first saw it; ``delivered`` is when Alertmanager had it."""

    name: str
    rank: int | None  # None: of the run as a whole
    run: str
    fired: float
    delivered: float | None = None
    active: bool = True


class AlertWatch:
    """The alerts of ``run``, from the first look on."""

    def __init__(self, prometheus: str, alertmanager: str, run: str) -> None:
        self._prometheus = prometheus
        self._alertmanager = alertmanager
        self._run = run
        self.alerts: dict[tuple[str, int | None], Alert] = {}

    def look(self) -> None:
        """Ask both. A server that does not answer has nothing new to say."""
        try:
            answer = get_json(f"{self._prometheus}/api/v1/alerts")
            firing = [alert["labels"] for alert in answer["data"]["alerts"] if alert["state"] == "firing"]
        except (NoAnswerError, LookupError, TypeError):
            firing = None
        try:
            delivered = [alert["labels"] for alert in get_json(f"{self._alertmanager}/api/v2/alerts")]
        except (NoAnswerError, LookupError, TypeError):
            delivered = []
        self.take(firing, delivered, time.time())

    def take(
        self, firing: Iterable[Mapping[str, Any]] | None, delivered: Iterable[Mapping[str, Any]], now: float
    ) -> None:
        """Take in the labels of what fires and of what was delivered; ``firing`` is None where nobody knows."""
        seen = set()
        for labels in self._ours(firing or ()):
            seen.add(self._note(labels, now))
        for labels in self._ours(delivered):
            key = self._note(labels, now)
            if self.alerts[key].delivered is None:
                self.alerts[key].delivered = now
        if firing is not None:
            for key, alert in self.alerts.items():
                alert.active = key in seen

    def _ours(self, all_labels: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [labels for labels in all_labels if labels.get("run") == self._run]

    def _note(self, labels: Mapping[str, Any], now: float) -> tuple[str, int | None]:
        rank = int(labels["rank"]) if str(labels.get("rank", "")).isdigit() else None
        key = (str(labels.get("alertname", "")), rank)
        if key not in self.alerts:
            self.alerts[key] = Alert(*key, run=self._run, fired=now)
        return key


def query(prometheus: str, expression: str) -> float | None:
    """The one number that ``expression`` gives; None if it gives none."""
    try:
        (result,) = get_json(f"{prometheus}/api/v1/query", query=expression)["data"]["result"]
        return float(result["value"][1])
    except (NoAnswerError, LookupError, TypeError, ValueError):
        return None
