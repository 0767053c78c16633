"""Prometheus and Alertmanager from the Debian or Ubuntu archive, into a cache folder: nothing is installed.

apt checks the packages' signatures; neither root nor a system service is needed, and no file outside the cache is
written. Debian's binaries expect their web pages and templates under /usr/share, where they are not; so each gets a
wrapper that says where they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Callable

PACKAGES = ("prometheus", "prometheus-alertmanager")
_WEB = ("libjs-", "fonts-glyphicons")  # what the pages of Debian's Prometheus are made of

# Prometheus has a flag for its pages. Alertmanager has none for its default templates: their path is compiled in, so
# another of the same length takes its place, one that leads through a file descriptor which the wrapper opens.
_TEMPLATES = b"/usr/share/prometheus/alertmanager"
_DESCRIPTOR = b"/proc/self/fd/9".ljust(len(_TEMPLATES), b"/")
_PROMETHEUS = """#!/bin/sh
top=$(dirname "$(dirname "$(readlink -f "$0")")")
exec "$top/usr/bin/prometheus" --web.local-assets="$top/usr/share/prometheus/web" "$@"
"""
_ALERTMANAGER = """#!/bin/sh
top=$(dirname "$(dirname "$(readlink -f "$0")")")
exec 9<"$top/usr/share/prometheus/alertmanager"
exec "$top/usr/bin/prometheus-alertmanager" "$@"
"""


class FetchError(Exception):
    """The packages could not be fetched; the message says why."""


def available() -> bool:
    """Whether this machine has apt and dpkg."""
    return all(shutil.which(command) for command in ("apt-get", "apt-cache", "dpkg-deb"))


def fetch(stack: Path, say: Callable[[str], None]) -> None:
    """Make the folder ``stack``, with ``bin/prometheus``, ``promtool``, ``alertmanager`` and ``amtool`` in it."""
    stack.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, to be renamed when it is whole: another demo may do the same now, or this one be stopped.
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=stack.parent) as work:
        folder = Path(work)
        archives = _download(folder, say)
        tree = folder / "stack"
        for archive in archives:
            _run(["dpkg-deb", "-x", str(archive), str(tree)], folder)
        wrap(tree)
        if not stack.exists():
            os.replace(tree, stack)


def wrap(tree: Path) -> None:
    """Give an unpacked ``tree`` its ``bin``, whose commands run from wherever the tree lies."""
    binaries = tree / "bin"
    binaries.mkdir()
    for name, script in (("prometheus", _PROMETHEUS), ("alertmanager", _ALERTMANAGER)):
        (binaries / name).write_text(script)
        (binaries / name).chmod(0o755)
    for name in ("promtool", "amtool"):
        (binaries / name).symlink_to(f"../usr/bin/{name}")
    alertmanager = tree / "usr/bin/prometheus-alertmanager"
    alertmanager.write_bytes(alertmanager.read_bytes().replace(_TEMPLATES, _DESCRIPTOR))


def _download(folder: Path, say: Callable[[str], None]) -> list[Path]:
    say("fetching the packages prometheus and prometheus-alertmanager from this system's archive (about 35 MB)")
    options: list[str] = []
    try:
        _run(["apt-get", "download", *PACKAGES], folder)
    except FetchError:
        # No package lists here, or old ones: lists of our own, which needs no root.
        say("this system's package lists are missing or old: fetching some into the cache")
        options = ["-o", f"Dir::State={folder}/state", "-o", f"Dir::Cache={folder}/cache"]
        options += ["-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "Debug::NoLocking=1"]
        options += ["-o", f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}"]
        (folder / "state/lists/partial").mkdir(parents=True)
        (folder / "cache/archives/partial").mkdir(parents=True)
        for half in folder.glob("*.deb"):
            half.unlink()
        _run(["apt-get", *options, "update"], folder)
        _run(["apt-get", *options, "download", *PACKAGES], folder)
    try:
        depends = _run(["apt-cache", *options, "depends", "--recurse", "--important", "prometheus"], folder)
        pages = sorted({line for line in depends.splitlines() if line.startswith(_WEB)})
        if pages:
            _run(["apt-get", *options, "download", *pages], folder)
    except FetchError as error:
        say(f"Prometheus will have no web pages, but work: {error}")
    return sorted(folder.glob("*.deb"))


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise FetchError(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise FetchError(f"{' '.join(command[:1] + command[-1:])}: {last}")
    return done.stdout
