"""Loss scale and skipped updates of ``paddle.amp.GradScaler``.

Hooks into ``step``, ``minimize`` and ``update`` of the one scaler. Paddle's optimizers read the flag of an overflow
themselves and leave it as a bool; where one leaves a tensor, it is read when its copy has arrived. The scale is a
tensor that is replaced when it changes. So nothing waits for the device here. Tested with paddlepaddle 2.6.2 and
3.3.1 on the CPU, where Paddle disables a scaler: the tests enable it by force.
"""

from __future__ import annotations

from typing import Any, Callable

from ..recorder import Recorder
from ..tensors import TensorQueue
from .wrapping import log, quiet, say_once, wrap

_FOUND = ("_cache_found_inf", "_cache_founf_inf")  # 3.x, 2.6
_METHODS = ("step", "minimize", "update")


class ScalerWatch:
    """Tells ``run`` what ``scaler`` does."""

    def __init__(self, run: Recorder, scaler: Any) -> None:
        self.scaler = scaler
        self._run = run
        self._scale: Any = None
        self._flags = TensorQueue(self._count, every=1)
        self._wrapped = [one for one in (wrap(scaler, name, self._call) for name in _METHODS) if one is not None]
        if not self._wrapped:
            say_once(f"loss scale and skipped updates are not seen: a {type(scaler).__name__} has no step()")
        elif not getattr(scaler, "_enable", True):
            log.info("this GradScaler is disabled: there is no loss scale and no skipped update to see")
        else:
            self._look("minimize")  # an update may have been skipped already

    def release(self) -> None:
        """Watch no longer."""
        for one in reversed(self._wrapped):
            one.release()

    def _call(self, name: str, method: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        result = method(*arguments, **options)
        self._look(name)
        return result

    @quiet
    def _look(self, name: str) -> None:
        scaler = self.scaler
        if not scaler._enable:
            return
        if name != "update":
            found = next((getattr(scaler, flag) for flag in _FOUND if hasattr(scaler, flag)), None)
            if found is True:
                self._run.skipped_step()
            elif found is not None and found is not False:
                self._flags.take(0, found)
            self._flags.poll()
        if name != "step" and scaler._scale is not self._scale:
            self._scale = scaler._scale
            self._run.log(loss_scale=self._scale)

    def _count(self, _: int, flag: float) -> None:
        if flag:
            self._run.skipped_step()
