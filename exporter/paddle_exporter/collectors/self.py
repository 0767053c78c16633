"""The exporter about itself."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from prometheus_client.core import Metric

from .. import catalogue
from ..version import __version__
from .families import Families


def collect_self() -> Iterator[Metric]:
    """Versions."""
    families = Families()
    families.info(catalogue.BUILD_INFO, {"version": __version__, "python": platform.python_version()})
    yield from families
