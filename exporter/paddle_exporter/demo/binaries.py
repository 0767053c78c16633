"""Where Prometheus and Alertmanager come from: PATH, else the cache, else the system's archive, else Docker.

``python -m paddle_exporter.demo.binaries`` prints the folders they are in, as PATH has them (the Makefile's tests).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from . import debian

_NAMES = {"prometheus": ("prometheus",), "alertmanager": ("alertmanager", "prometheus-alertmanager")}
_IMAGES = {"prometheus": "prom/prometheus:v3.5.0", "alertmanager": "prom/alertmanager:v0.28.1"}

Say = Callable[[str], None]


class MissingError(Exception):
    """Prometheus or Alertmanager cannot be had; the message says what to install."""


@dataclass(frozen=True)
class Tool:
    """A server that can be run: its ``path``, or the Docker ``image`` that has it."""

    name: str
    path: Path | None = None
    image: str = ""

    def command(self, folder: Path, label: str) -> list[str]:
        """The beginning of its command line. It sees ``folder``, at the same path; ``label`` names a container."""
        if self.path is not None:
            return [str(self.path)]
        return [
            *("docker", "run", "--rm", "--name", label, "--network", "host"),
            *("--user", f"{os.getuid()}:{os.getgid()}", "--volume", f"{folder}:{folder}"),
            *("--entrypoint", f"/bin/{self.name}", self.image),
        ]


def find(say: Say) -> dict[str, Tool]:
    """``prometheus`` and ``alertmanager``; MissingError if they cannot be had. ``say`` is told what takes time."""
    tools = _installed(os.environ.get("PATH", ""))
    if len(tools) == len(_NAMES):
        return tools
    stack = cache() / "stack"
    problem = "apt-get is not there"
    if debian.available() and not (stack / "bin/alertmanager").exists():
        try:
            debian.fetch(stack, say)
        except (debian.FetchError, OSError) as error:
            problem = str(error)
            say(f"that did not work: {problem}")
    tools = {**_installed(str(stack / "bin")), **tools}
    if len(tools) < len(_NAMES):
        tools = {**_images(say), **tools}
    if len(tools) < len(_NAMES):
        missing = " and ".join(name for name in _NAMES if name not in tools)
        raise MissingError(
            f"{missing} not found on PATH, nor to be had from this system's archive ({problem}) or from Docker. "
            "Install Prometheus 2.42 or later and Alertmanager 0.25 or later: apt-get install prometheus "
            "prometheus-alertmanager, brew install prometheus alertmanager, or https://prometheus.io/download/"
        )
    return tools


def cache() -> Path:
    """Our cache folder."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(chosen) if os.path.isabs(chosen) else Path.home() / ".cache") / "paddle-exporter"


def _installed(path: str) -> dict[str, Tool]:
    tools = {}
    for name, commands in _NAMES.items():
        found = next(filter(None, (shutil.which(command, path=path) for command in commands)), None)
        if found:
            tools[name] = Tool(name, Path(found))
    return tools


def _images(say: Say) -> dict[str, Tool]:
    if not _docker("info"):
        return {}
    for image in _IMAGES.values():
        if not _docker("image", "inspect", image):
            say(f"fetching the Docker image {image}")
            if not _docker("pull", "--quiet", image):
                say("that did not work")
                return {}
    return {name: Tool(name, image=image) for name, image in _IMAGES.items()}


def _docker(*arguments: str) -> bool:
    try:
        command = ["docker", *arguments]
        return subprocess.run(command, capture_output=True, timeout=600, check=False).returncode == 0  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return False


def main() -> int:
    """Print the folders of the two, joined by colons."""
    try:
        tools = find(lambda line: print(line, file=sys.stderr))
    except MissingError as error:
        print(error, file=sys.stderr)
        return 1
    print(":".join(dict.fromkeys(str(tool.path.parent) for tool in tools.values() if tool.path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
