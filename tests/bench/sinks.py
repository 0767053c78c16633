"""What the same ten scalars cost in what people log them to: VisualDL, tensorboardX, Weights & Biases (offline)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Callable

from steps import NAMES, OTHERS, SETS, STEP, child_sets, steps
from timing import Case, Line, Turns, page_directory

from paddle_exporter.page import PageWriter
from paddle_exporter.recorder import Recorder


def visualdl(directory: str) -> Case:
    """Ten ``add_scalar``."""
    from visualdl import LogWriter

    return _adding(LogWriter(logdir=directory).add_scalar)


def tensorboard(directory: str) -> Case:
    """Ten ``add_scalar``."""
    from tensorboardX import SummaryWriter

    return _adding(SummaryWriter(logdir=directory).add_scalar)


def _adding(add: Callable[[str, float, int], object]) -> Case:
    step = 0

    def case(losses: list[float]) -> None:
        nonlocal step
        for loss in losses:
            step += 1
            for name, value in zip(NAMES, (loss, *OTHERS)):
                add(name, value, step)

    return case


def wandb(directory: str) -> Case:
    """One ``log`` of ten, in offline mode: no account, no network."""
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        os.environ[variable] = directory
    Path(directory).mkdir()
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
    import wandb as client

    # Its own look at the machine every few seconds is no part of logging.
    settings = client.Settings(console="off", x_disable_stats=True, x_disable_meta=True)
    run = client.init(project="bench", mode="offline", dir=directory, settings=settings)

    def case(losses: list[float]) -> None:
        for loss in losses:
            run.log(dict(zip(NAMES, (loss, *OTHERS))))

    return case


SINKS: dict[str, Callable[[str], Case]] = {
    "VisualDL, 10 add_scalar": visualdl,
    "tensorboardX, 10 add_scalar": tensorboard,
    "W&B offline, 1 log of 10": wandb,
}


def measure(quick: bool) -> list[Line]:
    """The lines of this part; a sink that cannot run here has a line that says why."""
    directory = Path(tempfile.mkdtemp())
    recorder = Recorder(PageWriter(page_directory() / "bench.page", {}))
    cases, skipped = {STEP: steps(recorder), SETS: child_sets()}, []
    for name, make in SINKS.items():
        try:
            case = make(str(directory / name[:3]))
            case([2.0])
        except Exception as error:
            skipped.append(Line("sink", name, skipped=f"{type(error).__name__}: {error}"))
        else:
            cases[name] = case
    turns = Turns(cases, block=0.01, rest=list(SINKS)).go(2.0 if quick else 15.0)
    return [*(turns.line("sink", name, STEP) for name in cases), *skipped]
