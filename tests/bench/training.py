"""How much training slows down: a real loop of Paddle, recorded and scraped in every second block of steps.

The blocks take turns and are compared in pairs. A block takes a second; whoever scrapes is another process, once in
each block that is recorded. Paddle computes with one thread, so that the machine's other work disturbs it little.
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

import itertools
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

from steps import DICT, SETS, child_sets, dict_stores, steps
from timing import Case, Line, interval, page_directory

import paddle_exporter
from paddle_exporter.recorder import Recorder

STEP_SECONDS = 0.010
LIMIT = 0.001  # of a step
LOOP, COMPUTING = "a loop of Paddle", "its computing, of all threads"

Times = tuple[float, float]
"""Seconds of a step: those that passed, and those that the process computed, the exporter's thread included."""

# A process that scrapes a moment after each line it reads.
_SCRAPER = """
import sys, time, urllib.request
for line in sys.stdin:
    delay, url = line.split()
    time.sleep(float(delay))
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert b"paddle_train_loss" in answer.read()
"""


class Loop:
    """A multilayer perceptron that learns, in steps of about STEP_SECONDS."""

    def __init__(self, paddle: Any) -> None:
        paddle.set_device("cpu")
        paddle.seed(1)
        net = paddle.nn
        self._model = net.Sequential(
            net.Linear(256, 512), net.ReLU(), net.Linear(512, 512), net.ReLU(), net.Linear(512, 1)
        )
        self._loss = net.MSELoss()
        self._optimizer = paddle.optimizer.AdamW(1e-4, parameters=self._model.parameters())
        self._paddle = paddle
        self._take(64)
        for _ in range(6):
            self.run(10)
            started = time.perf_counter()
            self.run(20)
            took = (time.perf_counter() - started) / 20
            self._take(max(8, round(self.batch * STEP_SECONDS / took)))
        self.run(20)

    def _take(self, batch: int) -> None:
        self.batch = batch
        self._inputs = self._paddle.randn([batch, 256])
        self._targets = self._paddle.randn([batch, 1])

    def run(self, steps: int, tell: Case | None = None) -> Times:
        """Train; returns the times of a step. ``tell`` is told each loss."""
        wall, computing = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = self._loss(self._model(self._inputs), self._targets)
            loss.backward()
            self._optimizer.step()
            self._optimizer.clear_grad()
            value = loss.item()
            if tell is not None:
                tell([value])
        return (time.perf_counter() - wall) / steps, (time.process_time() - computing) / steps


def measure(quick: bool) -> list[Line]:
    """The lines of this part."""
    try:
        import paddle
    except ImportError as error:
        return [Line("training", LOOP, skipped=str(error))]
    loop = Loop(paddle)
    directory = page_directory()
    with paddle_exporter.start(run="bench", page_dir=directory, address="127.0.0.1", port=0, linger=0) as run:
        before = _exporter_seconds()
        scraper = subprocess.Popen([sys.executable, "-c", _SCRAPER], stdin=subprocess.PIPE, text=True)
        try:
            pairs = _pairs(loop, run, scraper, seconds=12.0 if quick else 110.0)
        finally:
            scraper.communicate()
        if scraper.returncode:
            return [Line("training", LOOP, skipped=f"the scraper failed with {scraper.returncode}")]
        thread = (_exporter_seconds() - before) / len(pairs)
        calls = _calls(loop, run, 180 if quick else 900)
    what, note = "the exporter's thread, for a scrape", "training waits for it at most that long"
    scrape = Line("training", what, "ms", thread * 1e3, thread * 1e3, "a second", thread, note=note)
    ours = calls[-1]
    total = Line(
        "training", "run.step() and the thread, added up", "us", reference="a step", limit=LIMIT, judged="ratio"
    )
    step = ours.median / ours.ratio
    total.median, total.minimum = ours.median + thread * step, ours.minimum + thread * step
    total.ratio = total.median / step
    return [*_compared(pairs), *calls, scrape, total]


def _pairs(loop: Loop, run: Recorder, scraper: Any, seconds: float) -> list[tuple[Times, Times]]:
    """Times of blocks of steps, (without, with)."""
    tell, count = steps(run), round(1.0 / STEP_SECONDS)
    loop.run(10, tell)
    pairs: list[tuple[Times, Times]] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        times = {}
        for recorded in (False, True) if len(pairs) % 2 else (True, False):
            if recorded:
                scraper.stdin.write(f"0.5 {run.url}\n")
                scraper.stdin.flush()
            times[recorded] = loop.run(count, tell if recorded else None)
        pairs.append((times[False], times[True]))
    return pairs


def _compared(pairs: list[tuple[Times, Times]]) -> list[Line]:
    lines = []
    for clock, what in enumerate((LOOP, COMPUTING)):
        bare, recorded = ([times[clock] * 1e3 for times in side] for side in zip(*pairs))
        ratios = [mine / other for mine, other in zip(recorded, bare)]
        line = Line("training", "  recorded and scraped", "ms", statistics.median(recorded), min(recorded), what)
        line.ratio, (line.low, line.high) = statistics.median(ratios), interval(ratios)
        lines += [Line("training", what, "ms", statistics.median(bare), min(bare)), line]
    lines[0].note = f"{len(pairs)} pairs of blocks of {round(1.0 / STEP_SECONDS)} steps"
    lines[1].limit, lines[1].judged = 1.0 + LIMIT, "ratio"
    return lines


def _exporter_seconds() -> float:
    """What the exporter's thread has computed until now."""
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "paddle-exporter"]
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def _calls(loop: Loop, run: Recorder, count: int) -> list[Line]:
    """What calls cost in the loop, where the caches are the model's; they take turns."""
    calls = {"nothing": lambda losses: None, DICT: dict_stores(), SETS: child_sets(), "run.step()": steps(run)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    turns = itertools.cycle(calls.items())

    def tell(losses: list[float]) -> None:
        name, call = next(turns)
        started = time.perf_counter()
        call(losses)
        times[name].append((time.perf_counter() - started) * 1e6)

    step, _ = loop.run(count, tell)
    nothing = statistics.median(times.pop("nothing"))
    lines = []
    for name, taken in times.items():
        median = statistics.median(taken) - nothing
        lines.append(Line("training", f"{name}, in the loop", "us", median, min(taken) - nothing, "a step"))
        lines[-1].ratio = median / (step * 1e6)
    return lines
