"""The programs that tests run: Prometheus, Alertmanager and their tools."""

from __future__ import annotations

import os
import shutil

import pytest

_NAMES = {"alertmanager": ("alertmanager", "prometheus-alertmanager")}  # the second one is Debian's


def binary(name: str) -> str:
    """Path of "prometheus", "promtool", "alertmanager" or "amtool"; skips the test without it, or fails it in CI."""
    for candidate in _NAMES.get(name, (name,)):
        found = shutil.which(candidate)
        if found:
            return found
    message = f"{name} is not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
