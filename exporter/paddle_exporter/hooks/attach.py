"""``Run.attach``: the hooks of a hand-written loop, and who counts its steps.

Whoever calls ``run.step()`` between two updates of the optimizer counts himself, and the hooks only add what they find.
Otherwise each update is a step. That is known at the second update, so the first one is counted then, with its time.
Tested with paddlepaddle 2.6.2 and 3.3.1.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from .. import run as runs
from ..recorder import Recorder
from . import checkpoint, dataloader, gradclip
from .amp import ScalerWatch
from .gradclip import Norm
from .optimizer import Watch
from .wrapping import quiet, say_once

_NONE: dict[str, Any] = {}
_loop: Loop | None = None


class Loop:
    """What the hooks find in one run's loop. One optimizer is watched at a time: the one attached last."""

    def __init__(self, run: Recorder) -> None:
        import paddle

        self.run = run
        self.norm = Norm()
        self.updates = 0
        self.teller: Any = None  # the one callback that tells steps; of two in one training the last
        self.amounts: dict[str, float] = {}
        self.counts: bool | None = None  # whether updates are steps; None while that is open
        self._first: tuple[float, float] | None = None  # when the first update was, and the seconds spent away by then
        self._seen = 0.0
        self._watch: Watch | None = None
        self._scaler: ScalerWatch | None = None
        self._dynamic = paddle.in_dynamic_mode
        self._rates = True

    @property
    def watches(self) -> bool:
        """Whether updates of an optimizer are seen."""
        return self._watch is not None and self._watch.works

    @quiet
    def watch(self, optimizer: Any) -> None:
        """Take updates, learning rate and norm from ``optimizer``."""
        if self._watch is None or self._watch.optimizer is not optimizer:
            self._let_go()
            self._rates = True
            self._watch = Watch(optimizer, self)

    @quiet
    def watch_scaler(self, scaler: Any) -> None:
        """Take loss scale and skipped updates from ``scaler``."""
        if self._scaler is None or self._scaler.scaler is not scaler:
            if self._scaler is not None:
                self._scaler.release()
            self._scaler = ScalerWatch(self.run, scaler)

    @quiet
    def before(self, optimizer: Any) -> None:
        """An update of ``optimizer`` begins."""
        if getattr(optimizer, "_grad_clip", None) is not self.norm.clip:
            self.norm.follow(optimizer)

    @quiet
    def after(self, optimizer: Any) -> None:
        """An update ended."""
        if not self._dynamic():
            return  # a program is being built
        self.updates += 1
        run, values = self.run, self._values(optimizer)
        if self.counts:
            if run._count == self._seen:
                run.step(**self.amounts, **values)
                self._seen = run._count
                return
            self.counts = False
            say_once("step() is called beside attach(): from now on steps are what step() says")
        elif self.counts is None:
            if self._first is None:
                self._first, self._seen = (monotonic(), run._away), run._count
            elif run._count == self._seen:
                self._count_two(*self._first, values)
                return
            else:
                self.counts = False
        run.log(**{name: value for name, value in values.items() if name not in run._told})

    def _values(self, optimizer: Any) -> dict[str, Any]:
        values = {}
        if self._rates:
            try:
                rate = getattr(optimizer, "learning_rate", None)  # LBFGS, whose get_lr() is always 1
                values["learning_rate"] = rate if isinstance(rate, float) else optimizer.get_lr()
            except Exception as error:
                self._rates = False
                say_once(f"the learning rate of a {type(optimizer).__name__} is not seen: {error!r}")
        norm = self.norm.take()
        # Gradients overflow now and then in healthy fp16 training: that is a skipped update, not a norm.
        if norm is not None and getattr(optimizer, "_auxiliary_vars", _NONE).get("found_inf") is not True:
            values["grad_norm"] = norm
        return values

    def _count_two(self, when: float, away: float, values: dict[str, Any]) -> None:
        """Nobody else counts: this update is a step, and the first one, at ``when``, was."""
        self.counts = True
        run = self.run
        run.step(**self.amounts)
        run._previous = when + run._away - away
        run.step(**self.amounts, **values)
        self._seen = run._count

    @quiet
    def finish(self) -> None:
        """The run ends: count the one update there was, and leave everything as it was found."""
        if self.counts is None and self._first is not None and self.run._count == self._seen:
            self.run.step(**self.amounts)
        self.release()

    def release(self) -> None:
        """Watch nothing any longer."""
        self._let_go()
        if self._scaler is not None:
            self._scaler.release()
            self._scaler = None

    def _let_go(self) -> None:
        self.norm.release()
        if self._watch is not None:
            self._watch.release()
            self._watch = None


def active() -> runs.Run:
    """The active run, started if there is none."""
    run = runs._current()
    return run if run is not None and run.state == "running" else runs.start()


def attach(
    run: Recorder,
    model: Any = None,
    optimizer: Any = None,
    scaler: Any = None,
    *,
    samples: float = 0,
    tokens: float = 0,
    counts: bool | None = None,
) -> Loop:
    """Hook ``run`` into what is given, and into Paddle's DataLoader, save and clip_grad_norm_.

    ``samples`` and ``tokens`` are what a counted step has. ``counts``: whether updates are steps; None finds out.
    """
    global _loop
    if _loop is None or _loop.run is not run:
        if _loop is not None:
            _loop.release()
        _loop = Loop(run)
        run._at_end.append(_loop.finish)
    loop = _loop
    quiet(dataloader.follow)(run)
    quiet(checkpoint.follow)(run)
    quiet(gradclip.follow)(loop.norm)
    if counts is not None:
        loop.counts = counts
    if samples or tokens:
        amounts = {"samples": samples, "tokens": tokens}
        loop.amounts = {name: amount for name, amount in amounts.items() if amount}
    # A paddle.Model has both.
    optimizer = optimizer if optimizer is not None else getattr(model, "_optimizer", None)
    scaler = scaler if scaler is not None else getattr(model, "_scaler", None)
    if optimizer is not None:
        loop.watch(optimizer)
    elif counts is None:
        say_once("attach() was given no optimizer: no steps are counted but those of step()")
    if scaler is not None:
        loop.watch_scaler(scaler)
    return loop
