"""What the same ten scalars cost in what people log them to: VisualDL, tensorboardX, Weights & Biases (offline)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Callable, Dict, List

from steps import NAMES, OTHERS, SETS, STEP, child_sets, rounds, steps
from timing import Case, Line, Turns

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

    def case(count: int) -> None:
        nonlocal step
        for loss in rounds(count):
            step += 1
            for name, value in zip(NAMES, (loss, *OTHERS)):
                add(name, value, step)

    return case


def wandb(directory: str) -> Case:
    """One ``log`` of ten, in offline mode: no account, no network."""
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        os.environ[variable] = directory
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
    import wandb as client

    # Its own look at the machine every few seconds is no part of logging.
    settings = client.Settings(console="off", x_disable_stats=True, x_disable_meta=True)
    run = client.init(project="bench", mode="offline", dir=directory, settings=settings)

    def case(count: int) -> None:
        for loss in rounds(count):
            run.log(dict(zip(NAMES, (loss, *OTHERS))))

    return case


SINKS: Dict[str, Callable[[str], Case]] = {
    "VisualDL, 10 add_scalar": visualdl,
    "tensorboardX, 10 add_scalar": tensorboard,
    "W&B offline, 1 log of 10": wandb,
}


def measure(quick: bool) -> List[Line]:
    """The lines of this part; a sink that cannot run here has a line that says why."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) if _can_ignore() else _plain() as directory:
        recorder = Recorder(PageWriter(Path(directory) / "bench.page", {}))
        cases, skipped = {STEP: steps(recorder), SETS: child_sets()}, {}
        for name, make in SINKS.items():
            try:
                cases[name] = make(str(Path(directory) / name[:3]))
                cases[name](1)
            except BaseException as error:
                cases.pop(name, None)
                skipped[name] = f"{type(error).__name__}: {error}"
        sinks = [name for name in SINKS if name in cases]
        turns = Turns(cases, block=0.01, rest=sinks).go(3.0 if quick else 15.0)
        lines = [turns.line("sink", name, STEP, note="and threads of its own" if name in sinks else "") for name in cases]
        return [*lines, *(Line("sink", name, skipped=why) for name, why in skipped.items())]
