"""``paddle-exporter demo``: train on this machine, watch it with the real thing, and say what was seen."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from . import processes
from .alerts import AlertWatch, query
from .binaries import MissingError, find
from .job import Job
from .outcome import Outcome
from .ranks import Ranks
from .screen import Screen, alert_line
from .stack import Stack, StackError

_LOOK_SECONDS = 0.3
_LONGEST = 240.0  # of a job; it ends by itself after 80 s of training
_ALERT_SECONDS = 30.0  # how long an alert may take to come once training has ended
_MORE_SECONDS = 3.0  # for the other alerts of the same fault
_QUIET_SECONDS = 6.0  # without an alert after a healthy run: a false one would come by then

_OURS = '{{__name__=~"paddle_.+", run="{run}"}}[15m]'
_SCRAPES = 'scrape_duration_seconds{{job="paddle", run="{run}"}}[15m]'


def run_demo(*, ranks: int = 2, fault: str | None = None, report: Path | None = None, keep: bool = False) -> int:
    """Run the demo; returns the exit status: 0 when all went as it should, the alert for a ``fault`` included."""
    screen = Screen()
    problem = _unable(ranks)
    if problem:
        screen.say(problem, "red")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="paddle-exporter-demo-"))
    kept = False
    try:
        with processes.ended_by_signals():
            tools = find(screen.say)
            with Stack(tools, folder, survive=keep) as stack:
                stack.start()
                outcome = _train_and_watch(stack, folder, ranks, fault, screen)
                status = _conclude(outcome, screen, report)
                if keep:
                    kept = True
                    _say_how_to_end(stack, folder, screen)
                return status
    except (MissingError, StackError) as error:
        screen.say(str(error), "red")
        return 1
    except KeyboardInterrupt:
        screen.say("Stopped; nothing is left running.", "red")
        return 130
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _unable(ranks: int) -> str:
    """Why the demo cannot run here; "" if it can."""
    if not sys.platform.startswith("linux"):
        return "the demo needs Linux: Paddle's launcher, /proc and memory-mapped pages"
    if ranks < 1:
        return f"--ranks {ranks}: at least one rank has to train"
    missing = [name for name in ("paddle", "sklearn", "setuptools") if importlib.util.find_spec(name) is None]
    if missing:
        return f"the demo needs more than the exporter ({', '.join(missing)}): pip install 'paddle-exporter[demo]'"
    return ""


def _train_and_watch(stack: Stack, folder: Path, ranks: int, fault: str | None, screen: Screen) -> Outcome:
    run = f"digits-demo-{secrets.token_hex(3)}"
    screen.say(f"Prometheus {stack.prometheus}, Alertmanager {stack.alertmanager}; run {run}, {ranks} ranks", "bold")
    with Job(run, ranks, fault, folder, stack.targets) as job:
        watch = _Watch(job, AlertWatch(stack.prometheus, stack.alertmanager, run), Outcome(ranks, fault), screen)
        with screen:
            watch.until(lambda: not job.running, _LONGEST)
            outcome = watch.outcome
            outcome.status = job.status
            if outcome.moment is not None:
                watch.until(lambda: outcome.wanted() is not None, _ALERT_SECONDS)
                watch.until(lambda: False, _MORE_SECONDS)
            elif outcome.status == 0:
                watch.until(lambda: bool(outcome.alerts), _QUIET_SECONDS)
        watch.close()
        series = query(stack.prometheus, f"count(last_over_time({_OURS.format(run=run)}))")
        outcome.series = None if series is None else int(series)
        outcome.scrape_seconds = query(stack.prometheus, f"max(quantile_over_time(0.5, {_SCRAPES.format(run=run)}))")
        if outcome.moment is None and outcome.status != 0:
            _show_logs(job, outcome, screen)
    return outcome


class _Watch:
    """Looks at pages and alerts again and again, and says what is new."""

    def __init__(self, job: Job, alerts: AlertWatch, outcome: Outcome, screen: Screen) -> None:
        self._job = job
        self._ranks = Ranks(job.pages)
        self._alerts = alerts
        self.outcome = outcome
        self._screen = screen
        self._said: set[object] = set()

    def until(self, done: Callable[[], bool], seconds: float) -> None:
        """Look until ``done``, for at most ``seconds``; the last look is after it was."""
        deadline = time.monotonic() + seconds
        over = False
        while not over:
            over = done() or time.monotonic() >= deadline
            self._look()
            if not over:
                time.sleep(_LOOK_SECONDS)

    def _look(self) -> None:
        outcome = self.outcome
        outcome.views = self._ranks.read()
        self._alerts.look()
        outcome.moment = self._job.fault
        outcome.alerts = list(self._alerts.alerts.values())
        if self._new("urls", len(self._job.urls()) == outcome.ranks):
            self._screen.say("Metrics: " + " ".join(self._job.urls()))
        if outcome.moment is not None and self._new("fault"):
            moment = outcome.moment
            self._screen.say(f"Fault: {outcome.fault} in rank {moment.rank} at step {moment.step}", "bold")
        for alert in outcome.alerts:
            if self._new((alert.name, alert.rank), alert.delivered is not None):
                self._screen.say(alert_line(alert, outcome.after_fault(alert)), "bold red")
        self._screen.show(time.monotonic() - self._job.began, outcome.views, outcome.alerts)

    def _new(self, what: object, happened: bool = True) -> bool:
        if not happened or what in self._said:
            return False
        self._said.add(what)
        return True

    def close(self) -> None:
        """Close the pages."""
        self._ranks.close()


def _conclude(outcome: Outcome, screen: Screen, report: Path | None) -> int:
    screen.summary(outcome)
    if report is not None:
        outcome.write(report)
        screen.say(f"Report: {report}")
    problems = outcome.problems()
    for problem in problems:
        screen.say(f"Not as it should be: {problem}", "bold red")
    if not problems:
        wanted = outcome.wanted()
        screen.say(
            "All as it should be: " + (f"{wanted.name} named rank {wanted.rank}." if wanted else "no alert."), "green"
        )
    return 1 if problems else 0


def _show_logs(job: Job, outcome: Outcome, screen: Screen) -> None:
    ranks = outcome.failed_ranks()
    logs = {f"rank {rank}'s log": job.rank_log(rank) for rank in ranks[:2]}  # the others' say the same, mostly
    if not any(logs.values()):
        logs = {"the launcher's log": job.launcher_log()}
    for name, lines in logs.items():
        screen.say(f"--- the end of {name}", "bold")
        screen.say(lines)


def _say_how_to_end(stack: Stack, folder: Path, screen: Screen) -> None:
    pids = " ".join(map(str, stack.keep()))
    screen.say(
        f"Prometheus {stack.prometheus} and Alertmanager {stack.alertmanager} go on running. To end them:", "bold"
    )
    screen.say(f"  kill {pids}; rm -r {folder}")
