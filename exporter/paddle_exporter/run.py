"""A run in this process: its page, its endpoint, and how it ends."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import ending
from .identity import Identity, identify, paddle_version
from .page import PageWriter, create_page, default_directories
from .recorder import Recorder
from .settings import Settings, environ, load
from .targets import host_and_port, remove_target, target_file, write_target

if TYPE_CHECKING:
    from .serve import Endpoint

log = logging.getLogger("paddle_exporter")

END_STATES = ("finished", "failed", "killed")
_SCRAPED_LATELY = 300.0  # seconds; longer ago, and nobody is expected to come for the run's end


class Run(Recorder):
    """A recorder with a page, an endpoint, a target file and an end. Made by ``start``.

    ``with paddle_exporter.start() as run:`` ends it as "finished", or as "failed" when an exception leaves the
    block. Without ``with``, the end of the process does, and an exception that nobody catches.
    """

    def __init__(self, settings: Settings, identity: Identity) -> None:
        self.settings = settings
        self.identity = identity
        self.state = "running"
        self._endpoint: Endpoint | None = None
        self._target: Path | None = None
        self._ending = threading.RLock()
        self._owner = f"{identity.node} {os.getpid()} {time.time_ns():x}"
        page = self._open_page() if settings.enabled else PageWriter(None, identity.info())
        super().__init__(
            page,
            target_steps=settings.target_steps,
            first_step=settings.first_step,
            max_scalars=settings.max_scalars,
            tensor_every=settings.tensor_every,
        )
        self.page: Path | None = page.path
        if settings.enabled and settings.serve:
            self._serve()
        if self.page is not None:
            ending.mark_sigterm(self.page)

    @property
    def name(self) -> str:
        """The run's name, the same in all of its ranks."""
        return self.identity.run

    @property
    def rank(self) -> int:
        """Rank of this process in the run."""
        return self.identity.rank

    @property
    def url(self) -> str | None:
        """Where this rank's metrics are, seen from this machine; None when they are not served here."""
        if self._endpoint is None:
            return None
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.address, self.settings.address)
        return f"http://{host_and_port(address, self._endpoint.port)}/metrics"

    def attach(
        self, model: Any = None, optimizer: Any = None, scaler: Any = None, samples: float = 0, tokens: float = 0
    ) -> Run:
        """Take steps, data wait, learning rate, gradient norm, loss scale and checkpoints from a hand-written loop.

        Each update of ``optimizer`` is a step, of ``samples`` samples and ``tokens`` tokens on this rank, unless the
        loop calls ``step`` itself; tell other values with ``log``. ``scaler`` is the ``paddle.amp.GradScaler``, if
        there is one. A ``paddle.Model`` as ``model`` has both. What this Paddle does not offer is said once.
        """
        try:
            from .hooks.attach import attach

            attach(self, model=model, optimizer=optimizer, scaler=scaler, samples=samples, tokens=tokens)
        except Exception:
            log.warning("attach() failed; call step() yourself", exc_info=True)
        return self

    def finish(self, state: str = "finished", **facts: str) -> None:
        """End the run: the last values and ``state`` are kept, served to one more scrape, and the port is closed.

        ``state`` is finished, failed or killed. Waits for that scrape for at most the setting ``linger``, and only
        if a Prometheus scraped before. ``facts`` become labels of paddle_run_info. What is recorded later goes nowhere.
        """
        if state not in END_STATES:
            log.warning("a run does not end as %r but as %s; it is recorded as failed", state, ", ".join(END_STATES))
            state = "failed"
        with self._ending:
            if self.state != "running":
                return
            self.state = state
        try:
            self._last_words()
        except Exception:
            log.warning("the run's last values were not recorded", exc_info=True)
        finally:
            with ending.holding_sigterm():
                self._finish(state, facts)

    def _finish(self, state: str, facts: Mapping[str, str]) -> None:
        """The end, part by part: one that fails, or is interrupted, keeps no other from being done."""
        known = self.identity.info()
        interrupt: BaseException | None = None
        parts: tuple[Callable[[], object], ...] = (
            lambda: self._page.set_state(state),
            self._commit,
            lambda: self._page.describe({name: str(fact) for name, fact in facts.items() if name not in known}),
            self._linger,
            self._stop_serving,
            self._page.detach,
        )
        for part in parts:
            try:
                part()
            except Exception:
                log.warning("a part of the run's end failed", exc_info=True)
            except BaseException as error:  # Ctrl-C while it waits: the rest is done all the same
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state, facts = ending.judge(error)
        self.finish(state, **facts)

    def abandon(self) -> None:
        """In a forked child: the run is the parent's. The child's calls are accepted and count nothing."""
        global _starting
        _starting = threading.Lock()
        self._ending = threading.RLock()
        self._table.after_fork()
        self.state = "abandoned"
        self.page = None
        self._page.detach()
        if self._endpoint is not None:
            self._endpoint.abandon()

    # --- beginning --------------------------------------------------------------------------------------------

    def _open_page(self) -> PageWriter:
        chosen = self.settings.page_dir
        directories = ([chosen] if chosen else []) + [d for d in default_directories() if d != chosen]
        name = f"rank{self.identity.rank:05d}-{os.getpid()}-{time.time_ns():x}"
        page, errors = create_page(directories, name, self.identity.info())
        for error in errors:
            log.warning("%s", error)
        if page.path is None:
            log.warning("no directory takes the page: values are served, but do not outlive this process")
        elif errors:
            log.warning("the page is %s", page.path)
        if page.path is not None:
            from .sweep import sweep

            sweep(page.path.parent, self.settings.page_retention)
        return page

    def _serve(self) -> None:
        from .collectors.guard import Collect
        from .collectors.ranks import RankCollector
        from .collectors.self import collect_self
        from .page_reader import OwnPageReader
        from .serve import Endpoint

        settings, identity = self.settings, self.identity
        own = OwnPageReader(self._page)
        collectors: dict[str, Collect] = {"self": collect_self, "ranks": RankCollector(lambda: [own])}
        title = f"{identity.run}, rank {identity.rank} of {identity.world_size}"
        wanted = settings.port + identity.local_rank if settings.port else 0
        try:
            self._endpoint = Endpoint(collectors, settings.address, wanted, settings.port_tries, title)
        except (OSError, RuntimeError) as error:  # no port, no thread
            log.warning("metrics are not served by this process: %s", error)
            return
        log.info("metrics of %s on %s", title, self.url)
        if wanted and self._endpoint.port != wanted:
            log.warning("port %d is taken; metrics of %s are on %s", wanted, title, self.url)
        directory = settings.targets_dir or (self.page.parent / "targets" if self.page else None)
        if directory is None:
            return
        labels = {"run": identity.run, "rank": str(identity.rank), "node": identity.node}
        target = directory / target_file(identity.run, identity.rank)
        try:
            write_target(target, self._host(), self._endpoint.port, labels, self._owner)
            self._target = target
        except (OSError, ValueError) as error:
            log.warning("no target file for Prometheus in %s: %s", directory, error)

    def _host(self) -> str:
        """The host under which Prometheus reaches this process."""
        if self.settings.advertise:
            return self.settings.advertise
        if self.settings.address not in ("0.0.0.0", "::"):
            return self.settings.address
        return environ().get("PADDLE_CURRENT_ENDPOINT", "").rpartition(":")[0] or self.identity.node

    def _stop_serving(self) -> None:
        if self._target is not None:
            remove_target(self._target, self._owner)
        if self._endpoint is not None:
            self._endpoint.close()

    def _linger(self) -> None:
        """Wait for one more scrape, if a Prometheus comes by: for as long as it takes to come, at most ``linger``."""
        endpoint, now = self._endpoint, time.monotonic()
        if endpoint is None:
            return
        if endpoint.scraped and now - endpoint.scraped < min(_SCRAPED_LATELY, 3.0 * endpoint.interval + 1.0):
            endpoint.wait_for_scrape(now, min(self.settings.linger, 1.5 * endpoint.interval + 1.0))

    def _first_step(self) -> None:
        # Paddle was imported since start(), and has brought its version and a signal handler of its own.
        version = paddle_version()
        if self.page is not None and version != self.identity.facts["paddle"]:
            self._page.describe({"paddle": version})
            ending.mark_sigterm(self.page)


_active: Run | None = None
_starting = threading.Lock()


def start(
    run: str | None = None,
    *,
    target_steps: int | None = None,
    tags: Mapping[str, str] | None = None,
    **settings: Any,
) -> Run:
    """Start recording and serving; the run is ended by ``finish``, by ``with``, or by the process's end.

    ``run`` is its name, ``target_steps`` the global step at which it is done, ``tags`` facts for paddle_run_info;
    ``settings`` are any others, by name (see the README's table). SettingError when one of them is not valid:
    the only error that is raised, here or later.

    While a run is active, a second ``start`` of the same name (or of none) returns it, as when a notebook's cell is
    run again; one of another name ends the first. In a worker of a DataLoader the run returned records nothing.
    """
    global _active
    checked = load({"run": run, "target_steps": target_steps, "tags": tags, **settings})
    with _starting:
        if _active is not None and _active.state == "running":
            if checked.run in (None, _active.name):
                log.warning("run %s is active already; its settings stay as they are", _active.name)
                return _active
            _active.finish()
        if _in_dataloader_worker():
            checked = checked._replace(enabled=False)
        identity = identify(checked, environ())
        try:
            _active = Run(checked, identity)
        except Exception:
            log.exception("the exporter could not start; training goes on without it")
            _active = Run(checked._replace(enabled=False), identity)
        ending.watch(_current)
        return _active


def _current() -> Run | None:
    return _active


def _in_dataloader_worker() -> bool:
    io = sys.modules.get("paddle.io")
    return io is not None and io.get_worker_info() is not None
