"""Who am I: run, rank, local rank, node, world size, and what the run is made of."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .settings import Settings
from .version import __version__

_NO_SCRIPT = ("", "-c", "-m", "-")


class Identity(NamedTuple):
    """A rank of a run. ``facts`` are the further labels of paddle_run_info."""

    run: str
    rank: int
    local_rank: int
    world_size: int
    local_size: int
    node: str
    facts: Mapping[str, str]

    def info(self) -> dict[str, str]:
        """All of it as labels of paddle_run_info, run and rank first."""
        return {
            "run": self.run,
            "rank": str(self.rank),
            "node": self.node,
            "local_rank": str(self.local_rank),
            "world_size": str(self.world_size),
            **self.facts,
        }


def identify(settings: Settings, environment: Mapping[str, str], script: str | None = None) -> Identity:
    """Who this process is, from Paddle's launcher variables; a process without a launcher is rank 0 of 1.

    ``script`` is the training script's path, by default what this process runs.
    """
    script = script if script is not None else (sys.argv or [""])[0]
    rank = _number(environment, ("PADDLE_TRAINER_ID", "PADDLE_GLOBAL_RANK"), 0)
    world_size = _number(environment, ("PADDLE_TRAINERS_NUM", "PADDLE_GLOBAL_SIZE"), 1)
    local_rank = _number(environment, ("PADDLE_LOCAL_RANK", "PADDLE_RANK_IN_NODE"), rank)
    local_size = _number(environment, ("PADDLE_LOCAL_SIZE",), world_size)
    facts = {
        "commit": settings.commit or _git_commit(script) or "",
        "seed": "" if settings.seed is None else str(settings.seed),
        "paddle": paddle_version(),
        "python": "{}.{}.{}".format(*sys.version_info),
        "exporter": __version__,
        **{f"tag_{name}": value for name, value in (settings.tags or {}).items()},
    }
    run = settings.run or _run_name(script, environment)
    return Identity(
        run, rank, local_rank, max(world_size, 1), max(local_size, 1), settings.node or os.uname().nodename, facts
    )


def paddle_version() -> str:
    """Paddle's version if it is imported, else ''. Importing it takes most of a second: that is the user's to do."""
    return str(getattr(sys.modules.get("paddle"), "__version__", ""))


def _number(environment: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        if re.fullmatch(r"\d{1,9}", environment.get(name, "")):
            return int(environment[name])
    return default


def _run_name(script: str, environment: Mapping[str, str]) -> str:
    """The script's name and 8 hex digits that the ranks of one launch share, on all of its nodes, and no other has.

    PADDLE_TRAINER_ENDPOINTS lists every rank's host and (random) port, the same in each of them. A process alone
    has nobody to agree with: its own number and start make the name.
    """
    import hashlib

    base = re.sub(r"[^0-9A-Za-z_.-]+", "-", Path(script).stem).strip("-.") or "run"
    shared = environment.get("PADDLE_TRAINER_ENDPOINTS") or f"{os.uname().nodename} {os.getpid()} {time.time_ns()}"
    return f"{base[:64]}-{hashlib.sha256(shared.encode()).hexdigest()[:8]}"


def _git_commit(script: str) -> str | None:
    """Commit of the checkout around ``script`` (or around where we are), read from files: no child process at start."""
    try:
        directory = Path(script).resolve().parent if script not in _NO_SCRIPT else Path.cwd()
        for place in (directory, *directory.parents):
            git = place / ".git"
            if git.is_file():  # a worktree or submodule: "gitdir: PATH"
                git = (place / git.read_text().partition(":")[2].strip()).resolve()
            if (git / "HEAD").is_file():
                commit = _head(git)
                return commit if commit and re.fullmatch("[0-9a-f]{40}([0-9a-f]{24})?", commit) else None
    except (OSError, ValueError, RuntimeError):  # unreadable, not text, a loop of links
        pass
    return None


def _head(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head
    reference = head[4:].strip()
    common = git / "commondir"
    for root in [git, (git / common.read_text().strip()).resolve()] if common.is_file() else [git]:
        if (root / reference).is_file():
            return (root / reference).read_text().strip()
        if (root / "packed-refs").is_file():
            for line in (root / "packed-refs").read_text().splitlines():
                if line.endswith(" " + reference):
                    return line.split()[0]
    return None
