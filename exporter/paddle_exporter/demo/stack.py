"""Prometheus and Alertmanager on free ports of the loopback, with this package's configuration and rules.

The files are those that operators install. One thing differs: it all happens every second (the "fast profile").
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Callable

import yaml

from ..assets import asset
from . import processes
from .binaries import Tool
from .local_http import NoAnswerError, get

INTERVAL = "1s"
_READY_SECONDS = 30.0
_PORTS_TRIED = 5
_TAKEN = "address already in use"


class StackError(Exception):
    """A server of the stack did not start; the message has the end of its log."""


def lay_out(folder: Path) -> Path:
    """Make in ``folder`` the tree that compose/prometheus/prometheus.yml describes; returns the targets' folder."""
    shutil.copytree(asset("alerts/rules"), folder / "rules")
    shutil.copyfile(asset("alerts/alertmanager.yml"), folder / "alertmanager.yml")
    configuration = yaml.safe_load(asset("compose/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    timing = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
    configuration["global"] = {**(configuration.get("global") or {}), **timing}
    configuration["global"].pop("scrape_timeout", None)  # without it, it is at most the interval
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
    targets = folder / "targets/paddle"
    targets.mkdir(parents=True)
    return targets


def free_port() -> int:
    """A port of the loopback that is free now. It may be taken a moment later: be ready to try another."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log; "" if there is none."""
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


@dataclass(frozen=True)
class Server:
    """A server that runs: where, and as which process."""

    name: str
    url: str
    process: subprocess.Popen[bytes]


class Stack:
    """Both servers, in ``folder``; ``with Stack(...)`` ends them. ``survive``: they may outlive this process."""

    def __init__(self, tools: dict[str, Tool], folder: Path, *, survive: bool = False) -> None:
        self._tools = tools
        self._folder = folder
        self._survive = survive
        self._servers: list[Server] = []
        self._kept = False
        self._started: list[subprocess.Popen[bytes]] = []
        self.targets = lay_out(folder)

    def start(self, port: Callable[[], int] = free_port) -> None:
        """Start both and wait until they answer; StackError if one does not. ``port`` gives a port to try."""
        alertmanager = self._serve("alertmanager", port, self._alertmanager)
        address = alertmanager.url.rpartition("/")[2]
        (self._folder / "targets/alertmanager.json").write_text(json.dumps([{"targets": [address]}]))
        self._servers = [self._serve("prometheus", port, self._prometheus), alertmanager]

    @property
    def prometheus(self) -> str:
        """Its URL."""
        return self._servers[0].url

    @property
    def alertmanager(self) -> str:
        """Its URL."""
        return self._servers[1].url

    def keep(self) -> list[int]:
        """Leave both running when this object is left; returns their process ids."""
        self._kept = True
        return [server.process.pid for server in self._servers]

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._kept:
            with processes.undisturbed():
                for process in self._started:
                    process.terminate()  # both at once, then wait
                for process in self._started:
                    processes.end(process)

    # --- one server -------------------------------------------------------------------------------------------

    def _serve(self, name: str, port: Callable[[], int], flags: Callable[[str], list[str]]) -> Server:
        log = self._folder / f"{name}.log"
        for _ in range(_PORTS_TRIED):
            log.unlink(missing_ok=True)
            address = f"127.0.0.1:{port()}"
            tool = self._tools[name]
            prefix = tool.command(self._folder, f"{self._folder.name}-{name}")
            process = processes.spawn([*prefix, *flags(address)], log, folder=self._folder, survive=self._survive)
            self._started.append(process)
            if _wait(address, process, tool):
                return Server(name, f"http://{address}", process)
            processes.end(process)
            if _TAKEN not in tail(log):
                break
        raise StackError(f"{name} did not start. Its log ends with\n{tail(log)}")

    def _prometheus(self, address: str) -> list[str]:
        return [
            f"--config.file={self._folder}/prometheus.yml",
            f"--storage.tsdb.path={self._folder}/prometheus",
            f"--web.listen-address={address}",
            f"--web.external-url=http://{address}/",
        ]

    def _alertmanager(self, address: str) -> list[str]:
        return [
            f"--config.file={self._folder}/alertmanager.yml",
            f"--storage.path={self._folder}/alertmanager",
            f"--web.listen-address={address}",
            f"--web.external-url=http://{address}/",
            "--cluster.listen-address=",  # alone, and no port to the outside
        ]


def _wait(address: str, process: subprocess.Popen[bytes], tool: Tool) -> bool:
    """Whether ``process`` lives and answers at ``address``, in time."""
    began = time.monotonic()
    while time.monotonic() - began < _READY_SECONDS and process.poll() is None:
        try:
            get(f"http://{address}/-/ready", timeout=1.0)
        except NoAnswerError:
            pass
        else:
            # Somebody else may have had the port first: then it is they who answer, and ours will give up.
            if tool.path is None or processes.listens(process.pid, int(address.rpartition(":")[2])):
                return process.poll() is None
        time.sleep(0.05)
    return False
