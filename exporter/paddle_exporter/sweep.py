"""Old pages are taken away; nothing of a living process ever is."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from .page import SIGTERM_SUFFIX, SUFFIX, PageError
from .page_reader import PageReader, has_writer


def sweep(directory: Path, retention: float) -> None:
    """Remove pages whose writer ended and that nobody wrote for ``retention`` seconds, with what lies beside them."""
    for path in list(directory.iterdir()):
        with contextlib.suppress(OSError):  # another rank's sweep was faster, or it is no file of ours
            if path.is_symlink():
                continue
            if path.suffix in (SUFFIX, ".new") and time.time() - _last_sign(path) > retention and not has_writer(path):
                path.unlink()
                path.with_suffix(SIGTERM_SUFFIX).unlink()


def _last_sign(path: Path) -> float:
    """When its writer last wrote, as Unix time. A file in memory does not move its own time for stores of a mapping."""
    created = path.lstat().st_mtime
    try:
        reader = PageReader(path)
    except PageError:
        return created
    try:
        slots = {name: value for name, labels, value in reader.read() if not labels}
    except PageError:
        return created
    finally:
        reader.close()
    times = [slots.get(name, 0.0) for name in ("_start", "_last_step", "_phase_since", "_end")]
    return max(created, max(time for time in times if time == time) + slots.get("_clock", 0.0))
