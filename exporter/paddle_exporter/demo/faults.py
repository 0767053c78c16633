"""What can go wrong in the demo's training: one fault, in one rank, from one step on."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

KINDS = ("nan", "crash", "hang")
HANG_SECONDS = 27.0  # the other ranks wait in the all-reduce meanwhile; gloo gives them up after 30


class Fault:
    """A fault of ``kind`` (or none) that strikes this process at ``step``; ``file`` is told when it did."""

    def __init__(self, kind: str | None, rank: int, step: int, file: Path | None) -> None:
        self._kind = kind
        self._rank = rank
        self._step = step
        self._file = file

    def strike(self, step: int, images: Any) -> Any:
        """The batch to train step number ``step`` on: ``images``, or what the fault has made of it."""
        if self._kind is None or step < self._step:
            return images
        if step == self._step:
            self._tell(step)
            if self._kind == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._kind == "hang":
                time.sleep(HANG_SECONDS)
        if self._kind == "nan":  # a camera with a broken pixel: from now on one pixel of every image is NaN
            images[:, :, 3, 3] = float("nan")
        return images

    def _tell(self, step: int) -> None:
        if self._file is not None:
            unfinished = self._file.with_suffix(".tmp")
            unfinished.write_text(json.dumps({"time": time.time(), "rank": self._rank, "step": step}))
            os.replace(unfinished, self._file)
