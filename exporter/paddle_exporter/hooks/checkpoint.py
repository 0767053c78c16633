"""Checkpoints: time, failures, and the phase "checkpoint".

Hooks into ``paddle.save`` and ``paddle.distributed.save_state_dict``. A checkpoint is mostly several files, the
model's, the optimizer's, the scheduler's: saves with no training step between them are one checkpoint, whose time is
the sum and whose moment is the last one's. A save inside another is part of it; one into memory is none; every failure
counts. ``paddle.async_save`` is counted where its thread saves. What is written by other means (safetensors,
``paddle.jit.save``) is not seen: ``run.checkpoint(seconds)`` tells it. Tested with paddlepaddle 2.6.2 and 3.3.1.
"""

from __future__ import annotations

import functools
import os
import threading
from time import monotonic
from typing import Any

from ..recorder import Recorder
from .wrapping import quiet, replace, say_once, untraced

_saves: Saves | None = None
_installed = False
_inside = threading.local()


class Saves:
    """The saves of ``run``, grouped to checkpoints."""

    def __init__(self, run: Recorder) -> None:
        self.run = run
        self.seconds = 0.0
        self._saved_at: float | None = None  # the count of steps at the last good save

    @quiet
    def add(self, seconds: float, ok: bool = True) -> None:
        """A save ended; after a good one, further ones before the next step belong to it."""
        self.seconds += seconds
        at = self.run._count
        self.run.checkpoint(seconds, ok, part=ok and at == self._saved_at)
        if ok:
            self._saved_at = at


def follow(run: Recorder) -> Saves:
    """From now on saves are told to ``run``."""
    global _saves, _installed
    if _saves is None or _saves.run is not run:
        _saves = Saves(run)
    if not _installed:
        _installed = True
        import paddle

        for owner, name in ((paddle, "save"), (paddle.distributed, "save_state_dict")):
            original = getattr(owner, name, None)
            if original is None:
                say_once(f"checkpoints are not seen: this Paddle has no {owner.__name__}.{name}()")
            else:
                replace(name, original, _timed(original))
    return _saves


def _timed(original: Any) -> Any:
    @untraced
    @functools.wraps(original)
    def save(*arguments: Any, **options: Any) -> Any:
        saves = _saves
        path = options.get("path", arguments[1] if len(arguments) > 1 else None)
        if saves is None or getattr(_inside, "a_save", False) or not isinstance(path, (str, os.PathLike)):
            return original(*arguments, **options)
        _inside.a_save = True
        start = monotonic()
        ok = False
        try:
            with saves.run.phase("checkpoint"):
                result = original(*arguments, **options)
            ok = True
            return result
        finally:
            _inside.a_save = False
            saves.add(monotonic() - start, ok)

    return save
