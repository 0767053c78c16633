"""What a step of ten scalars costs, and a phase: beside plain stores, and beside prometheus_client's own metrics."""

from __future__ import annotations

import contextlib
from typing import Any

from prometheus_client import CollectorRegistry, Gauge
from timing import Case, Line, Turns, page_directory

import paddle_exporter
from paddle_exporter.page import PageWriter
from paddle_exporter.recorder import Recorder

NAMES = ("loss", "learning_rate", "accuracy", "perplexity", "entropy", "aux_loss", "kl", "reward", "wait", "memory_gb")
OTHERS = (3e-4, 0.91, 7.4, 1.93, 0.012, 0.03, 0.6, 0.0021, 61.2)
DICT, SETS, LABELS = "10 stores in a dict", "10 child.set of prometheus_client", "10 labels().set of prometheus_client"
STEP, BOUND = "run.step(), 10 scalars", "a bound step, 10 scalars"
TWO_DETECTORS, TENSOR = "run.step(), grad_norm one of 10", "run.step(), loss a CPU tensor"
NOTHING, PHASE = "a context that does nothing", "a phase, entered and left"


def dict_stores() -> Case:
    """Ten values, ten names, one dictionary."""
    kept: dict[str, float] = {}
    b, c, d, e, f, g, h, i, j = OTHERS

    def case(losses: list[float]) -> None:
        for loss in losses:
            kept["loss"] = loss
            kept["learning_rate"] = b
            kept["accuracy"] = c
            kept["perplexity"] = d
            kept["entropy"] = e
            kept["aux_loss"] = f
            kept["kl"] = g
            kept["reward"] = h
            kept["wait"] = i
            kept["memory_gb"] = j

    return case


def child_sets() -> Case:
    """Ten gauges of prometheus_client, labels resolved before."""
    first, *rest = [gauge.labels("bench", "0") for gauge in _gauges()]
    others = list(zip(rest, OTHERS))

    def case(losses: list[float]) -> None:
        for loss in losses:
            first.set(loss)
            for child, value in others:
                child.set(value)

    return case


def label_sets() -> Case:
    """Ten gauges of prometheus_client, labels given each time."""
    first, *rest = _gauges()
    others = list(zip(rest, OTHERS))

    def case(losses: list[float]) -> None:
        for loss in losses:
            first.labels("bench", "0").set(loss)
            for gauge, value in others:
                gauge.labels("bench", "0").set(value)

    return case


def _gauges() -> list[Gauge]:
    registry = CollectorRegistry()
    return [Gauge(name, "bench", ["run", "rank"], registry=registry) for name in NAMES]


def steps(run: Recorder) -> Case:
    """Ten values, told to ``run`` by name."""
    b, c, d, e, f, g, h, i, j = OTHERS

    def case(losses: list[float]) -> None:
        for loss in losses:
            run.step(
                loss=loss, learning_rate=b, accuracy=c, perplexity=d, entropy=e,
                aux_loss=f, kl=g, reward=h, wait=i, memory_gb=j,
            )  # fmt: skip

    return case


def steps_of_two_detectors(run: Recorder) -> Case:
    """The same, but one of them is the gradient norm, which has a detector as the loss has."""
    b, c, d, e, f, g, h, i, j = OTHERS

    def case(losses: list[float]) -> None:
        for loss in losses:
            run.step(
                loss=loss, learning_rate=b, accuracy=c, perplexity=d, entropy=e,
                aux_loss=f, kl=g, reward=h, wait=i, grad_norm=j,
            )  # fmt: skip

    return case


def steps_of_a_tensor(run: Recorder, tensor: Any) -> Case:
    """The same, but the loss is a tensor of Paddle."""
    same = steps(run)

    def case(losses: list[float]) -> None:
        same([tensor] * len(losses))

    return case


def bound_steps(run: Recorder) -> Case:
    """Ten values, names resolved before."""
    step = run.bind(*NAMES)
    b, c, d, e, f, g, h, i, j = OTHERS

    def case(losses: list[float]) -> None:
        for loss in losses:
            step(loss, b, c, d, e, f, g, h, i, j)

    return case


def phases(phase: Any) -> Case:
    """Enter and leave ``phase``."""

    def case(losses: list[float]) -> None:
        for _ in losses:
            with phase:
                pass

    return case


def measure(quick: bool) -> list[Line]:
    """The lines of this part."""
    directory = page_directory()
    # Recorders of their own: once a tensor came, a recorder looks at each value.
    others = [Recorder(PageWriter(directory / f"{name}.page", {})) for name in ("tensor", "two")]
    skipped = []
    with paddle_exporter.start(run="bench", page_dir=directory, address="127.0.0.1", port=0, linger=0) as run:
        cases = {
            DICT: dict_stores(),
            BOUND: bound_steps(run),
            STEP: steps(run),
            TWO_DETECTORS: steps_of_two_detectors(others[1]),
            SETS: child_sets(),
            LABELS: label_sets(),
        }
        try:
            import paddle

            paddle.set_device("cpu")
            cases[TENSOR] = steps_of_a_tensor(others[0], paddle.to_tensor(2.5))
        except ImportError as error:
            skipped.append(Line("step", TENSOR, skipped=str(error)))
        turns = Turns(cases).go(1.5 if quick else 15.0)
        budgets: dict[str, dict[str, Any]] = {BOUND: {"limit": 4.0, "judged": "ratio"}, STEP: {"limit": 1.0}}
        lines = [turns.line("step", name, DICT, **budgets.get(name, {})) for name in cases]
        lines.insert(3, turns.line("step", STEP, SETS, limit=0.5, judged="ratio"))
        turns = Turns({NOTHING: phases(contextlib.nullcontext()), PHASE: phases(run.phase("data"))})
        turns.go(0.3 if quick else 2.0)
        return [*lines, *skipped, *(turns.line("phase", name, NOTHING) for name in (NOTHING, PHASE))]
