"""Metric families of prometheus_client, made from the catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from .. import catalogue

_LABEL = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*")


class Families:
    """The families of one scrape, each made at its first sample, in that order."""

    def __init__(self) -> None:
        self._families: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())

    def add(self, metric: catalogue.Metric, labels: Sequence[str], value: float) -> None:
        """Add a sample with ``labels`` in the declared order. NaN is no value, and adds none."""
        if value == value:
            self._of(metric).add_metric(labels, value)

    def info(self, metric: catalogue.Metric, labels: Mapping[str, str]) -> None:
        """Add a sample of 1 whose labels may be more than the declared ones; a name that cannot be one is left out."""
        valid = {name: value for name, value in labels.items() if _LABEL.fullmatch(name)}
        self._of(metric).add_sample(metric.name, valid, 1.0)

    def histogram(self, metric: catalogue.Metric, labels: Sequence[str], counts: Sequence[float], total: float) -> None:
        """Add a histogram from ``counts`` by bucket (not yet summed up; the last one is beyond all bounds)."""
        running = 0.0
        buckets = []
        for bound, count in zip([*map(repr, metric.buckets), "+Inf"], counts):
            running += count
            buckets.append((bound, running))
        self._of(metric).add_metric(labels, buckets, total)

    def _of(self, metric: catalogue.Metric) -> Any:
        if metric.name not in self._families:
            kind = {catalogue.COUNTER: CounterMetricFamily, catalogue.HISTOGRAM: HistogramMetricFamily}
            make = kind.get(metric.kind, GaugeMetricFamily)
            self._families[metric.name] = make(metric.name, metric.help, labels=metric.labels)
        return self._families[metric.name]
