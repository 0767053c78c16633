"""What people see: a live table of the ranks where there is a terminal, a line now and then where there is none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .alerts import Alert
from .outcome import Outcome
from .ranks import RankView

_LINE_SECONDS = 5.0
_STYLES = {"finished": "green", "running": "cyan", "failed": "red", "killed": "red", "vanished": "red"}


class Screen:
    """``say`` lines, ``show`` the ranks; ``with Screen()`` keeps the table up."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(highlight=False)
        self._console = console if console.is_terminal else Console(file=console.file, highlight=False, width=120)
        self._live: Live | None = None
        self._next_line = 0.0

    def say(self, line: str, style: str = "") -> None:
        """Print a line, above the table."""
        self._console.print(Text(line, style=style), soft_wrap=True)

    def show(self, seconds: float, views: Sequence[RankView], alerts: Sequence[Alert]) -> None:
        """The state of things after ``seconds``."""
        if self._live is not None:
            self._live.update(Group(ranks_table(views), alerts_line(alerts)), refresh=True)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_SECONDS
            for line in map(rank_line, views) if views else ("the ranks are starting",):
                self.say(f"{seconds:4.0f} s  {line}")

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def summary(self, outcome: Outcome) -> None:
        """How it all ended."""
        self._console.print(ranks_table(outcome.views))
        if outcome.moment is not None:
            moment = outcome.moment
            self.say(f"Fault: {outcome.fault} in rank {moment.rank} at step {moment.step}", "bold")
        for alert in outcome.alerts:
            self.say("  " + alert_line(alert, outcome.after_fault(alert)), "red")
        if not outcome.alerts:
            self.say("Alerts: none")
        took, series = _number(outcome.training_seconds, ".1f"), _number(outcome.series, "d")
        scrape = _milliseconds(outcome.scrape_seconds)
        self.say(f"Training took {took} s; Prometheus holds {series} series of the run; a rank's scrape took {scrape}.")


def ranks_table(views: Sequence[RankView]) -> Table:
    """One row a rank."""
    table = Table()
    for column in ("rank", "state", "step", "samples/s", "loss", "test accuracy", "step time"):
        table.add_column(column, justify="left" if column == "state" else "right", no_wrap=True)
    for view in views:
        table.add_row(
            str(view.rank),
            Text(_state(view), style=_STYLES.get(view.state, "")),
            _step(view),
            _number(view.samples_per_second, ".0f"),
            Text(_loss(view), style="red" if view.nonfinite_losses else ""),
            _number(view.accuracy, ".1%"),
            _milliseconds(view.step_seconds),
        )
    return table


def rank_line(view: RankView) -> str:
    """The same in one line."""
    return (
        f"rank {view.rank}: {_state(view)}, step {_step(view)}, {_number(view.samples_per_second, '.0f')} samples/s, "
        f"loss {_loss(view)}, accuracy {_number(view.accuracy, '.1%')}"
    )


def alerts_line(alerts: Sequence[Alert]) -> Text:
    """The alerts that fire now."""
    names = [alert.name + ("" if alert.rank is None else f" (rank {alert.rank})") for alert in alerts if alert.active]
    return Text("alerts firing: " + (", ".join(names) or "none"), style="red" if names else "")


def alert_line(alert: Alert, after_fault: float | None) -> str:
    """One alert, and how long it took."""
    where = "the run" if alert.rank is None else f"rank {alert.rank}"
    when = "" if after_fault is None else f", {after_fault:.1f} s after the fault"
    return f"Alert {alert.name}: {where}{when}" + ("" if alert.delivered else " (not yet with Alertmanager)")


def _state(view: RankView) -> str:
    return f"{view.state}, in {view.waits_in}" if view.waits_in else view.state


def _step(view: RankView) -> str:
    return str(view.steps) if view.target_steps is None else f"{view.steps}/{view.target_steps}"


def _loss(view: RankView) -> str:
    return _number(view.loss, ".4f") + (f" (NaN {view.nonfinite_losses} times)" if view.nonfinite_losses else "")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"
