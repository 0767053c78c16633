"""What a step of ten scalars costs, and a phase: beside plain stores and what prometheus_client's own metrics cost."""

from __future__ import annotations

import contextlib
import random
import tempfile
from pathlib import Path
from typing import Dict, List

from prometheus_client import CollectorRegistry, Gauge
from timing import Case, Line, Turns

import paddle_exporter
from paddle_exporter.page import PageWriter
from paddle_exporter.recorder import Recorder

NAMES = ("loss", "learning_rate", "accuracy", "perplexity", "entropy", "aux_loss", "kl", "reward", "data_time", "memory_gb")
OTHERS = (3e-4, 0.91, 7.4, 1.93, 0.012, 0.03, 0.6, 0.0021, 61.2)
DICT, SETS = "10 stores in a dict", "10 child.set of prometheus_client, bound before"
STEP, BOUND = "run.step(), 10 scalars", "a bound step, 10 scalars"

_noise = random.Random(1)
LOSSES = [2.0 * _noise.lognormvariate(0.0, 0.05) for _ in range(1000)]


def rounds(count: int) -> List[float]:
    """As many losses as ``count``."""
    return (LOSSES * (count // len(LOSSES) + 1))[:count]


def dict_stores() -> Case:
    """Ten values, ten names, one dictionary."""
    kept: Dict[str, float] = {}
    b, c, d, e, f, g, h, i, j = OTHERS

    def case(count: int) -> None:
        for loss in rounds(count):
            kept["loss"] = loss
            kept["learning_rate"] = b
            kept["accuracy"] = c
            kept["perplexity"] = d
            kept["entropy"] = e
            kept["aux_loss"] = f
            kept["kl"] = g
            kept["reward"] = h
            kept["data_time"] = i
            kept["memory_gb"] = j

    return case


def child_sets() -> Case:
    """Ten gauges of prometheus_client whose labels are resolved."""
    children = _gauges(bound=True)
    first, others = children[0], list(zip(children[1:], OTHERS))

    def case(count: int) -> None:
        for loss in rounds(count):
            first.set(loss)
            for child, value in others:
                child.set(value)

    return case


def label_sets() -> Case:
    """Ten gauges of prometheus_client, labels given each time."""
    gauges = _gauges(bound=False)
    first, others = gauges[0], list(zip(gauges[1:], OTHERS))

    def case(count: int) -> None:
        for loss in rounds(count):
            first.labels("bench", "0").set(loss)
            for gauge, value in others:
                gauge.labels("bench", "0").set(value)

    return case


def _gauges(bound: bool) -> list:
    registry = CollectorRegistry()
    gauges = [Gauge(name, "bench", ["run", "rank"], registry=registry) for name in NAMES]
    return [gauge.labels("bench", "0") for gauge in gauges] if bound else gauges


def steps(run: Recorder) -> Case:
    """The ten of them, told to ``run``."""
    b, c, d, e, f, g, h, i, j = OTHERS

    def case(count: int) -> None:
        for loss in rounds(count):
            run.step(
                loss=loss, learning_rate=b, accuracy=c, perplexity=d, entropy=e, aux_loss=f, kl=g, reward=h, data_time=i,
                memory_gb=j,
            )  # fmt: skip

    return case


def steps_of_two_detectors(run: Recorder) -> Case:
    """As above, with a gradient norm, which has a detector as the loss has, in place of one of the others."""
    b, c, d, e, f, g, h, i, j = OTHERS

    def case(count: int) -> None:
        for loss in rounds(count):
            run.step(
                loss=loss, learning_rate=b, accuracy=c, perplexity=d, entropy=e, aux_loss=f, kl=g, reward=h, data_time=i,
                grad_norm=loss,
            )  # fmt: skip

    return case


def steps_of_a_tensor(run: Recorder, tensor: object) -> Case:
    """As above; the loss is a tensor of Paddle."""
    b, c, d, e, f, g, h, i, j = OTHERS

    def case(count: int) -> None:
        for _ in range(count):
            run.step(
                loss=tensor, learning_rate=b, accuracy=c, perplexity=d, entropy=e, aux_loss=f, kl=g, reward=h,
                data_time=i, memory_gb=j,
            )  # fmt: skip

    return case


def bound_steps(run: Recorder) -> Case:
    """As above, names resolved before."""
    step = run.bind(*NAMES)
    b, c, d, e, f, g, h, i, j = OTHERS

    def case(count: int) -> None:
        for loss in rounds(count):
            step(loss, b, c, d, e, f, g, h, i, j)

    return case


def phases(run: Recorder) -> Case:
    """Enter and leave a phase that does nothing."""
    phase = run.phase("data")

    def case(count: int) -> None:
        for _ in range(count):
            with phase:
                pass

    return case


def no_phases(count: int) -> None:
    """The same of a context manager that does nothing."""
    nothing = contextlib.nullcontext()
    for _ in range(count):
        with nothing:
            pass


def measure(quick: bool) -> List[Line]:
    """The lines of this part."""
    with tempfile.TemporaryDirectory() as directory, paddle_exporter.start(
        run="bench", page_dir=directory, address="127.0.0.1", port=0, linger=0
    ) as run:
        others = [Recorder(PageWriter(Path(directory) / f"{name}.new", {})) for name in ("tensor", "two")]
        cases = {
            DICT: dict_stores(),
            BOUND: bound_steps(run),
            STEP: steps(run),
            "run.step(), grad_norm one of 10": steps_of_two_detectors(others[1]),
            SETS: child_sets(),
            "10 labels().set of prometheus_client": label_sets(),
        }
        tensor, why_not = _tensor()
        with_tensor = "run.step(), loss a CPU tensor"
        if tensor is not None:
            cases[with_tensor] = steps_of_a_tensor(others[0], tensor)
        turns = Turns(cases).go(1.5 if quick else 12.0)
        lines = [turns.line("step", name, DICT) for name in cases]
        by_name = {line.what: line for line in lines}
        by_name[BOUND].limit, by_name[BOUND].judged = 4.0, "ratio"
        by_name[STEP].limit = 1.0
        half = turns.line("step", STEP, SETS, limit=0.5, judged="ratio")
        lines.insert(lines.index(by_name[STEP]) + 1, half)
        if tensor is None:
            lines.append(Line("step", with_tensor, skipped=why_not))

        nothing, phase = "a context that does nothing", "a phase, entered and left"
        turns = Turns({nothing: no_phases, phase: phases(run)}).go(0.3 if quick else 2.0)
        return [*lines, *(turns.line("phase", name, nothing) for name in (nothing, phase))]


def _tensor() -> tuple:
    try:
        import paddle
    except ImportError as error:
        return None, str(error)
    paddle.set_device("cpu")
    return paddle.to_tensor(2.5), ""
