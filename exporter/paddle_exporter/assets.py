"""Files that come with the package: rules, dashboards, configuration of the stack."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def asset(name: str) -> Path:
    """Path of ``alerts``, ``dashboards``, ``compose`` or of something in them; FileNotFoundError if it is not there.

    A wheel carries them inside the package; in a checkout (an editable install) they lie at its top.
    """
    for root in (_PACKAGE / "assets", _PACKAGE.parents[1]):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"{name} did not come with this installation of paddle-exporter; reinstall it")
