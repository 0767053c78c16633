"""Time that training waits for data, as the phase "data".

Hooks into ``paddle.io.DataLoader.__iter__`` (starting workers is waiting, too) and ``__next__`` of its two iterators.
Paddle's own hook for this, ``profiler.timer.benchmark().hooks``, is not told when a loader ends or fails, and would
leave the phase open; it goes on working beside ours. What is read inside the phase "eval" is the evaluation's time.
Tested with paddlepaddle 2.6.2 and 3.3.1, with 0 and 2 workers, in loops, hapi and Trainers.
"""

from __future__ import annotations

import functools
from typing import Any

from ..recorder import Recorder
from .wrapping import say_once, untraced

_ITERATORS = ("_DataLoaderIterSingleProcess", "_DataLoaderIterMultiProcess")

_run: Recorder | None = None
_installed = False


def follow(run: Recorder) -> None:
    """From now on waits for data are told to ``run``."""
    global _run, _installed
    _run = run
    if _installed:
        return
    _installed = True
    import paddle
    from paddle.io.dataloader import dataloader_iter

    _wrap(paddle.io.DataLoader, "__iter__")
    for name in _ITERATORS:
        iterator = getattr(dataloader_iter, name, None)
        if iterator is None:
            say_once(f"waits for data are not seen: this Paddle's DataLoader has no {name}")
        else:
            _wrap(iterator, "__next__")


def _wrap(owner: type, name: str) -> None:
    original = getattr(owner, name)

    @untraced
    @functools.wraps(original)
    def waiting(self: Any) -> Any:
        phase = _phase()
        if phase is None:
            return original(self)
        with phase:
            return original(self)

    setattr(owner, name, waiting)


def _phase() -> Any:
    run = _run
    if run is None or any(phase.name == "eval" for phase in run._open_phases):
        return None
    return run.phase("data")
