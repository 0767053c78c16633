"""Prometheus exporter for PaddlePaddle training: ``run = paddle_exporter.start()``, then ``run.step(loss=loss)``."""

from .run import Run, start
from .version import __version__

__all__ = ["Run", "__version__", "start"]
