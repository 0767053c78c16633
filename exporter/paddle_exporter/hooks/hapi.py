"""The callback for ``paddle.Model``: ``model.fit(..., callbacks=[Callback()])``.

Hooks into ``paddle.callbacks.Callback``; values in its logs are host numbers. Learning rate and gradient norm come from
the model's optimizer, checkpoints from ``paddle.save``, waits from the DataLoader. Tested with paddlepaddle 2.6.2 and
3.3.1.
"""

from __future__ import annotations

from typing import Any

import paddle

from ..run import Run
from ..slots import STEP_OFFSET
from .attach import Loop, active, attach
from .wrapping import quiet


class Callback(paddle.callbacks.Callback):  # type: ignore[misc]  # paddle has no types here
    """Tells ``run`` what ``fit`` and ``evaluate`` do; without one, the active run, started if there is none.

    A step is an update: with ``accumulate_grad_batches`` it is the samples of several batches. Samples are this rank's.
    """

    def __init__(self, run: Run | None = None) -> None:
        super().__init__()
        self._given = run
        self._loop: Loop | None = None
        self._ranks = 1
        self._samples = 0.0
        self._updates = 0
        self._eval: Any = None

    @property
    def run(self) -> Run:
        """The run that is told."""
        return self._given or active()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Hook into the model's optimizer and say how many steps there will be."""
        run = self.run  # a wrong setting is raised here, before training
        self._begin(run)

    @quiet
    def _begin(self, run: Run) -> None:
        self._end_eval()
        self._loop = loop = attach(run, self.model, counts=False)
        self._ranks = paddle.distributed.get_world_size()
        self._samples, self._updates = 0.0, loop.updates
        loop.teller = self
        epochs, batches = self.params.get("epochs"), self.params.get("steps")
        if run.settings.target_steps is None and epochs and batches:
            steps = epochs * -(-batches // getattr(self.model, "_accumulate", 1))
            limit = getattr(self.model, "num_iters", None) or steps
            run.target(int(run._values[STEP_OFFSET] + run._count) + min(steps, limit))

    @quiet
    def on_epoch_begin(self, epoch: int | None = None, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Tell the epoch."""
        self._end_eval()
        self.run.epoch(epoch or 0)

    @quiet
    def on_train_batch_end(self, step: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Tell a step where the optimizer updated, and the loss and metrics in any case."""
        run, loop, logs = self.run, self._loop, logs or {}
        self._end_eval()
        if loop is not None and loop.teller is not self:
            return
        values = self._values(logs)
        self._samples += logs.get("batch_size", 0) / self._ranks
        if loop is not None and loop.watches and paddle.in_dynamic_mode():
            if getattr(self.model, "_scaler", None) is not None:  # made by the first batch
                loop.watch_scaler(self.model._scaler)
            if loop.updates == self._updates:
                run.log(**values)
                return
            self._updates = loop.updates
        else:
            values["learning_rate"] = self.model._optimizer.get_lr()
        run.step(samples=self._samples, **values)
        self._samples = 0.0

    @quiet
    def on_eval_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Enter the phase "eval"."""
        self._end_eval()
        self._eval = self.run.phase("eval")
        self._eval.__enter__()

    @quiet
    def on_eval_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave it, and tell the result."""
        self._end_eval()
        self.run.eval(**self._values(logs or {}))

    @quiet
    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Leave a phase that an error left open."""
        self._end_eval()

    def _end_eval(self) -> None:
        if self._eval is not None:
            phase, self._eval = self._eval, None
            phase.__exit__(None, None, None)

    def _values(self, logs: dict[str, Any]) -> dict[str, Any]:
        """The loss and metrics of ``logs``; of several outputs' losses the sum, which is what is trained on."""
        values = {}
        for name in self.params.get("metrics") or ():
            value = logs.get(name)
            if isinstance(value, (list, tuple)) and value:
                value = sum(value) if name == "loss" else value[0] if len(value) == 1 else None
            if value is not None:
                values[name] = value
        return values
