"""Target files for Prometheus's file_sd: each serving process writes one, and takes it away when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

_OWNER = "__paddle_exporter_owner"  # Prometheus drops labels that begin with two underscores


def target_file(run: str, rank: int) -> str:
    """Name of the target file of a rank; a restarted rank has the same one."""
    import hashlib

    slug = re.sub(r"[^0-9A-Za-z_.-]+", "-", run)[:64]
    return f"{slug}-{hashlib.sha256(run.encode('utf-8', 'replace')).hexdigest()[:6]}-rank{rank:05d}.json"


def host_and_port(host: str, port: int) -> str:
    """As URLs and targets have it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def write_target(path: Path, host: str, port: int, labels: Mapping[str, str], owner: str) -> None:
    """Write a target file at once: a reader sees the old one or the new one. OSError if it cannot be written.

    It is readable by all, for Prometheus has a user of its own. ``owner`` tells whose file it is.
    """
    import tempfile

    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd, unfinished = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(
                [{"targets": [host_and_port(host, port)], "labels": {**labels, _OWNER: owner}}],
                file,
                ensure_ascii=False,
            )
            os.fchmod(fd, 0o644)
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def remove_target(path: Path, owner: str) -> None:
    """Take the target file of ``owner`` away; one that a successor wrote in its place stays."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        if json.loads(path.read_text(encoding="utf-8"))[0]["labels"][_OWNER] == owner:
            path.unlink()
