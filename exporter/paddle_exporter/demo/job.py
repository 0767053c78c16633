"""The training job: train.py under Paddle's launcher, with the exporter's settings in its environment."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..settings import PREFIX, environ
from . import processes
from .stack import tail

_PACKAGE = Path(__file__).resolve().parents[1]
_LINGER = 5  # seconds a rank waits at its end for one more scrape; they come every second


@dataclass(frozen=True)
class Moment:
    """When the fault struck."""

    time: float
    rank: int
    step: int


class Job:
    """``ranks`` processes that train; ``with Job(...)`` ends them all. Its files are in ``folder``."""

    def __init__(self, run: str, ranks: int, fault: str | None, folder: Path, targets: Path) -> None:
        self.run = run
        self.pages = folder / "pages"
        self.pages.mkdir(mode=0o700)
        self._targets = targets
        self._logs = folder / "log"
        self._fault_file = folder / "fault.json"
        self._launcher_log = folder / "launcher.log"
        script = [str(Path(__file__).with_name("train.py")), "--checkpoints", str(folder / "checkpoints")]
        if fault is not None:
            script += ["--fault", fault, "--fault-file", str(self._fault_file)]
        launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks)]
        self._process = processes.spawn(
            [*launch, "--log_dir", str(self._logs), *script],
            self._launcher_log,
            environment=_environment(environ(), self._settings()),
            folder=folder,
        )
        self.began = time.monotonic()

    def _settings(self) -> dict[str, str]:
        chosen = {
            "run": self.run,
            "page_dir": self.pages,
            "targets_dir": self._targets,
            "address": "127.0.0.1",
            "port": 0,
            "linger": _LINGER,
        }
        return {PREFIX + name.upper(): str(value) for name, value in chosen.items()}

    @property
    def running(self) -> bool:
        """Whether the launcher, which waits for its ranks, has not ended."""
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        """The launcher's exit status; None while it runs."""
        return self._process.poll()

    @property
    def fault(self) -> Moment | None:
        """When the fault struck; None if it has not."""
        try:
            return Moment(**json.loads(self._fault_file.read_text()))
        except FileNotFoundError:
            return None

    def urls(self) -> list[str]:
        """Where the ranks serve their metrics now."""
        found: list[str] = []
        for path in sorted(self._targets.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):  # its rank has ended meanwhile
                found += [address for target in json.loads(path.read_text()) for address in target["targets"]]
        return [f"http://{address}/metrics" for address in found]

    def rank_log(self, rank: int) -> str:
        """The end of a rank's log; "" if it has none."""
        return tail(self._logs / f"workerlog.{rank}", 25)

    def launcher_log(self) -> str:
        """The end of the launcher's log, without the whole environment that it writes there, secrets and all."""
        return "\n".join(line for line in tail(self._launcher_log, 40).splitlines() if not line.startswith("env {"))

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with processes.undisturbed():
            processes.end(self._process)  # it ends its ranks
            # Should it not: each rank has a session of its own, and is no child of ours.
            processes.kill_marked(f"{PREFIX}RUN", self.run)


def _environment(ours: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of the job: ours, without what another launcher or exporter left in it."""
    environment = {name: value for name, value in ours.items() if not name.startswith("PADDLE_")}
    environment["OMP_NUM_THREADS"] = "1"  # more threads than idle cores make a small model's step ten times as long
    root = _PACKAGE.parent
    if root.name not in ("site-packages", "dist-packages"):  # a checkout, which the ranks may not know
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), ours.get("PYTHONPATH", ""))))
    return {**environment, **settings}
