"""Fixtures of all tests: a bare environment, a private page directory, runs that end, and reading what is exposed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

import paddle_exporter
from paddle_exporter.collectors.ranks import RankCollector
from paddle_exporter.page import PageWriter
from paddle_exporter.page_reader import OwnPageReader, PageReader, Snapshot
from paddle_exporter.recorder import Recorder

SOURCES = str(Path(paddle_exporter.__file__).resolve().parents[1])


class Scrape:
    """What one scrape exposes; call it with a name and labels other than run and rank."""

    def __init__(self, families: Any) -> None:
        self.families = list(families)
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, /, **labels: str) -> float | None:
        """The value of the one series of that name and those labels; None where there is none."""
        found = [s.value for s in self.samples if s.name == name and _others(s.labels) == labels]
        assert len(found) < 2, f"{name}{labels} is exposed {len(found)} times"
        return found[0] if found else None

    def total(self, name: str) -> float:
        """The sum over all series called ``name``."""
        return float(sum(s.value for s in self.samples if s.name == name))

    def labels(self, name: str) -> dict[str, str]:
        """All labels of the one series called ``name``."""
        (found,) = [s.labels for s in self.samples if s.name == name]
        return dict(found)


def _others(labels: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name not in ("run", "rank")}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith("PADDLE_"):
            monkeypatch.delenv(variable)


@pytest.fixture
def page_dir(tmp_path: Path) -> Path:
    """An empty directory that only we can enter."""
    directory = tmp_path / "pages"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def start(page_dir: Path) -> Iterator[Callable[..., paddle_exporter.Run]]:
    """``paddle_exporter.start`` on a free port of the loopback, with pages of its own; runs are ended afterwards."""
    runs: list[paddle_exporter.Run] = []

    def begin(*arguments: Any, **settings: Any) -> paddle_exporter.Run:
        usual = {"page_dir": page_dir, "address": "127.0.0.1", "port": 0, "linger": 0}
        runs.append(paddle_exporter.start(*arguments, **{**usual, **settings}))
        return runs[-1]

    yield begin
    for run in runs:
        run.finish()


@pytest.fixture
def scrape() -> Callable[..., Scrape]:
    """What an endpoint, a recorder or pages expose: ``scrape(run)``, ``scrape(recorder)``, ``scrape(path, ...)``."""

    def look(*sources: Any) -> Scrape:
        if isinstance(sources[0], Path):
            readers = [PageReader(path) for path in sources]
            try:
                return Scrape(RankCollector(lambda: readers)())
            finally:
                for reader in readers:
                    reader.close()
        if isinstance(sources[0], str):
            with urllib.request.urlopen(sources[0], timeout=10) as answer:
                return Scrape(text_string_to_metric_families(answer.read().decode()))
        own = OwnPageReader(sources[0]._page)
        return Scrape(RankCollector(lambda: [own])())

    return look


@pytest.fixture
def recorder() -> Recorder:
    """A recorder whose page is in memory."""
    return Recorder(PageWriter(None, {"run": "r", "rank": "0", "world_size": "1"}))


@pytest.fixture
def read() -> Callable[[Path], Snapshot]:
    """One commit of the page at a path."""

    def look(path: Path) -> Snapshot:
        reader = PageReader(path)
        try:
            return reader.read()
        finally:
            reader.close()

    return look


@pytest.fixture
def child(page_dir: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a Python process that runs ``script``, its settings by environment; none outlives the test."""
    children: list[subprocess.Popen[str]] = []

    def launch(script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        usual = {
            "PYTHONPATH": SOURCES,
            "PADDLE_EXPORTER_PAGE_DIR": str(page_dir),
            "PADDLE_EXPORTER_ADDRESS": "127.0.0.1",
            "PADDLE_EXPORTER_PORT": "0",
            "PADDLE_EXPORTER_LINGER": "0",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, **usual, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Background jobs of a shell inherit that SIGINT is ignored, and Python keeps to it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        children.append(process)
        return process

    yield launch
    for process in children:
        with contextlib.suppress(OSError):
            process.kill()
        process.communicate()


@pytest.fixture
def only_page(page_dir: Path) -> Callable[[], Path]:
    """The one page there is."""

    def find() -> Path:
        (page,) = page_dir.glob("*.page")
        return page

    return find
