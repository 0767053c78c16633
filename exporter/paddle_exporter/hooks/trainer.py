"""The callback for ``Trainer`` of PaddleNLP and PaddleFormers: ``Trainer(..., callbacks=[trainer_callback()])``.

Hooks into ``TrainerCallback``, and through it into the trainer's optimizer and scaler; into the DataLoader and
``paddle.save``. Tested with paddlenlp 2.8.1 on paddlepaddle 2.6.2 and paddleformers 1.2.0 on paddlepaddle 3.3.1.

A Trainer says when an evaluation and a save end, not when they begin: that is when nothing else is left to do before.
"""

from __future__ import annotations

import functools
import importlib
import sys
from time import monotonic
from typing import Any, Callable

from ..run import Run
from .attach import Loop, active, attach
from .checkpoint import follow as follow_saves
from .wrapping import quiet, say_once

PACKAGES = ("paddleformers", "paddlenlp")

# What the logs tell of a step that is told better elsewhere, or is no measurement.
_LEFT_OUT = ("global_step", "global_save_step", "step", "epoch", "progress_or_epoch", "total_flos")
_NAMES = {"global_norm": "grad_norm"}


class _Events:
    """What the callback does; the class that is used has the packages' TrainerCallback as a base."""

    def __init__(self, run: Run | None, tokens: float) -> None:
        self._given = run
        self._tokens = {"tokens": tokens} if tokens else {}
        self._loop: Loop | None = None
        self._training = False
        self._phase: Any = None
        self._entered = (0.0, 0.0)  # when the phase was, and what paddle.save had taken by then

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("on_"):  # an event of a version we do not know
            return lambda *_, **__: None
        raise AttributeError(name)

    @property
    def run(self) -> Run:
        """The run that is told."""
        return self._given or active()

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:  # noqa: ARG002
        """Hook into the trainer's optimizer and say how many steps there will be."""
        run = self.run  # a wrong setting is raised here, before training
        self._begin(run, state, objects.get("optimizer"))

    @quiet
    def _begin(self, run: Run, state: Any, optimizer: Any) -> None:
        self._leave()
        self._training = True
        self._loop = attach(run, optimizer=optimizer, counts=False)
        self._loop.teller = self
        if run.settings.target_steps is None and state.max_steps:
            run.target(state.max_steps)
        if state.global_step:
            run.reload(state.global_step)

    @quiet
    def on_optimizer_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:  # noqa: ARG002
        """Watch the scaler, where there is one."""
        if self._loop is not None and objects.get("scaler") is not None:
            self._loop.watch_scaler(objects["scaler"])

    @quiet
    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Nothing but training goes on."""
        self._leave()

    @quiet
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell a step."""
        self._leave()
        self._expect(control)
        if self._loop is not None and self._loop.teller is not self:
            return
        samples = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.run.step(samples=samples, global_step=state.global_step, **self._tokens)
        self.run.epoch(int(state.epoch or 0))

    @quiet
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **objects: Any) -> None:  # noqa: ARG002
        """Tell the loss, and what else is logged; an evaluation's result comes with ``on_evaluate``."""
        given: dict[str, Any] = dict(logs or {})
        values = {}
        for name, value in given.items():
            known = _NAMES.get(name, name)
            if known not in _LEFT_OUT and not name.startswith(("eval_", "train_")) and _is_number(value):
                values[known] = value
        if self._loop is not None and self._loop.watches:  # which tells them at each step, not rounded
            values.pop("learning_rate", None)
            if self._loop.norm.seen:
                values.pop("grad_norm", None)
        self.run.log(**values)
        self._expect(control)

    @quiet
    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        """An evaluation goes on."""
        if self._training:
            self._enter("eval")

    @quiet
    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Tell the result of an evaluation."""
        self._leave()
        given: dict[str, Any] = {name.removeprefix("eval_"): value for name, value in dict(metrics or {}).items()}
        self.run.eval(**{name: value for name, value in given.items() if name not in _LEFT_OUT and _is_number(value)})
        self._expect(control)

    @quiet
    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Tell a checkpoint: what ``paddle.save`` did not see of its time, and itself if it saw nothing."""
        saves = follow_saves(self.run)
        started, seen = self._entered
        known = self._phase is not None and self._phase.name == "checkpoint"
        seconds = monotonic() - started - (saves.seconds - seen) if known else 0.0
        self._leave()
        saves.add(seconds)

    @quiet
    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """An evaluation or a save may come."""
        self._leave()
        self._expect(control)

    @quiet
    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Nothing goes on any longer."""
        self._training = False
        self._leave()

    def _expect(self, control: Any) -> None:
        """Enter the phase of what the Trainer does next: it logs, then evaluates, then saves."""
        if control.should_log:
            return
        if control.should_evaluate:
            self._enter("eval")
        elif control.should_save:
            self._enter("checkpoint")

    def _enter(self, name: str) -> None:
        if self._phase is None or self._phase.name != name:
            self._leave()
            self._entered = (monotonic(), follow_saves(self.run).seconds)
            self._phase = self.run.phase(name)
            self._phase.__enter__()

    def _leave(self) -> None:
        if self._phase is not None:
            phase, self._phase = self._phase, None
            phase.__exit__(None, None, None)


def _is_number(value: Any) -> bool:
    return value is not None and not isinstance(value, (str, bool, dict, list, tuple))


@functools.cache
def _class(bases: tuple[type, ...]) -> Callable[..., Any]:
    return type("PaddleExporterCallback", (_Events, *bases), {})


def trainer_callback(run: Run | None = None, package: str | None = None, tokens: float = 0) -> Any:
    """A callback for the Trainer of ``package``; without one, of those of the packages that are imported.

    ``run`` is told; without one, the active run, started if there is none. ``tokens`` are those of one step on this
    rank.
    """
    names = [package] if package else [name for name in PACKAGES if name in sys.modules]
    bases = []
    for name in names:
        try:
            bases.append(importlib.import_module(f"{name}.trainer.trainer_callback").TrainerCallback)
        except (ImportError, AttributeError) as error:
            say_once(f"{name} has no TrainerCallback, the callback does without: {error}")
    return _class(tuple(bases))(run, tokens)
