"""What a scrape of a page costs, beside one of prometheus_client's own metrics that hold the same series."""

from __future__ import annotations

import urllib.request

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from steps import steps
from timing import Case, Line, Turns, losses, page_directory

import paddle_exporter
from paddle_exporter.collectors.guard import Guard
from paddle_exporter.collectors.ranks import RankCollector
from paddle_exporter.page_reader import PageReader

PAGE, OWN = "a page, read and rendered", "prometheus_client, rendered"
PAGE_HTTP, OWN_HTTP = "a page, over HTTP", "prometheus_client, over HTTP"


def same_series(families: list) -> CollectorRegistry:
    """A registry of prometheus_client's own metrics with the series of ``families``."""
    registry = CollectorRegistry()
    for family in families:
        labels = [name for name in family.samples[0].labels if name != "le"]
        kind = {"counter": Counter, "histogram": Histogram}.get(family.type, Gauge)
        if kind is Histogram:
            bounds = [sample.labels["le"] for sample in family.samples if "le" in sample.labels]
            metric = kind(
                family.name, family.documentation, labels, registry=registry, buckets=[float(b) for b in bounds]
            )
        else:
            metric = kind(family.name, family.documentation, labels, registry=registry)
        for sample in family.samples:
            values = [sample.labels[name] for name in labels]
            child = metric.labels(*values) if labels else metric
            if kind is Gauge:
                child.set(sample.value)
            elif kind is Counter:
                child.inc(sample.value)
    return registry


def rendering(registry: CollectorRegistry) -> Case:
    """The exposition, in memory."""

    def case(losses: list[float]) -> None:
        for _ in losses:
            generate_latest(registry)

    return case


def fetching(url: str) -> Case:
    """The exposition, by a client in this process."""

    def case(losses: list[float]) -> None:
        for _ in losses:
            with urllib.request.urlopen(url) as answer:
                answer.read()

    return case


def measure(quick: bool) -> list[Line]:
    """The lines of this part."""
    directory = page_directory()
    with paddle_exporter.start(run="bench", page_dir=directory, address="127.0.0.1", port=0, linger=0) as run:
        steps(run)(losses(1000))
        run.eval(loss=1.9, accuracy=0.9)
        reader = PageReader(run.page)
        ours = CollectorRegistry(auto_describe=False)
        ours.register(Guard({"ranks": RankCollector(lambda: [reader])}))
        families = list(ours.collect())
        own = same_series(families)
        started = start_http_server(0, "127.0.0.1", own)
        server = started[0] if started else None
        cases = {
            OWN: rendering(own),
            PAGE: rendering(ours),
            PAGE_HTTP: fetching(run.url),
        }
        pairs = [(OWN, OWN), (PAGE, OWN)]
        if server is None:  # before prometheus_client 0.19
            pairs.append((PAGE_HTTP, PAGE))
        else:
            cases[OWN_HTTP] = fetching(f"http://127.0.0.1:{server.server_port}/metrics")
            pairs += [(OWN_HTTP, OWN_HTTP), (PAGE_HTTP, OWN_HTTP)]
        turns = Turns(cases, block=0.02).go(1.5 if quick else 8.0)
        lines = [turns.line("scrape", name, reference, unit="ms") for name, reference in pairs]
        series = sum(len(family.samples) for family in families)
        lines[0].note = f"{series} series"
        if server is not None:
            server.shutdown()
        reader.close()
    return lines
