"""Old pages are taken away; nothing of a living process ever is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from .page import SIGTERM_SUFFIX, SUFFIX


def sweep(directory: Path, retention: float) -> None:
    """Remove pages whose writer ended and that nobody wrote for ``retention`` seconds, with what lies beside them."""
    for path in list(directory.iterdir()):
        with contextlib.suppress(OSError):  # another rank's sweep was faster, or it is no file of ours
            old = path.suffix in (SUFFIX, ".new") and time.time() - path.lstat().st_mtime > retention
            if old and not _in_use(path):
                path.unlink()
                path.with_suffix(SIGTERM_SUFFIX).unlink()


def _in_use(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)
