"""The global norm of the gradients, taken from where it is computed anyway: the clipping.

Hooks into ``_dygraph_clip`` of the clip that the watched optimizer has (ClipGradByGlobalNorm, and what fleet, sharding
and MoE put in its place), and into ``paddle.nn.utils.clip_grad_norm_``. A clip returns the gradients only, but each of
them makes the norm by ``paddle.sqrt`` of one number: that name is ours for the duration of the clip. Nothing is computed
twice, and ranks that share a norm report the same. Tested with paddlepaddle 2.6.2 and 3.3.1.

Without clipping, or with clipping by value or by each tensor's norm, there is no global norm to take.
"""

from __future__ import annotations

import functools
from threading import get_ident
from typing import Any, Callable

from .wrapping import Wrapped, quiet, replace, say_once, wrap

_ONE = ([], [1])  # shapes of one number
_NO_GLOBAL_NORM = ("ClipGradByValue", "ClipGradByNorm")

_current: Norm | None = None
_installed = False


class Norm:
    """The norm that was taken since the last update."""

    def __init__(self) -> None:
        self.seen = False  # whether there ever was one
        self._found: list[Any] = []
        self._clips: list[Any] = []
        self._wrapped: list[Wrapped] = []

    @quiet
    def follow(self, optimizer: Any) -> None:
        """Watch the clips that ``optimizer`` has now: fleet and sharding replace them. Called before each update."""
        clip = getattr(optimizer, "_grad_clip", None)
        if self._clips and clip is self._clips[0]:
            return
        self.release()
        groups = [group for group in getattr(optimizer, "_param_groups", None) or () if isinstance(group, dict)]
        self._clips = [clip]
        for other in (group.get("grad_clip") for group in groups):
            if not any(other is known for known in self._clips):
                self._clips.append(other)
        for one in self._clips:
            if one is not None and type(one).__name__ not in _NO_GLOBAL_NORM:
                wrapped = wrap(one, "_dygraph_clip", self._clip)
                if wrapped is None:
                    say_once(f"the gradients' norm is not seen: a {type(one).__name__} has no _dygraph_clip()")
                else:
                    self._wrapped.append(wrapped)

    def release(self) -> None:
        """Watch no clip any longer."""
        for wrapped in reversed(self._wrapped):
            wrapped.release()
        self._wrapped, self._clips = [], []

    def offer(self, tensor: Any) -> None:
        """A norm was computed: a tensor of one number."""
        self.seen = True
        self._found.append(tensor)

    def take(self) -> Any:
        """The norm since it was last taken, as a tensor; None if there was none."""
        found, self._found = self._found, []
        if len(found) < 2:  # noqa: PLR2004
            return found[0] if found else None
        import paddle  # parameter groups are clipped one by one

        with paddle.no_grad():
            return paddle.sqrt(sum(norm * norm for norm in found))

    def _clip(self, _: str, method: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        import paddle

        found: list[Any] = []
        listening = get_ident()
        real = paddle.sqrt

        @functools.wraps(real)
        def sqrt(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            if get_ident() == listening:
                found.append(result)
            return result

        paddle.sqrt = sqrt
        try:
            return method(*arguments, **options)
        finally:
            listening = 0
            if paddle.sqrt is sqrt:
                paddle.sqrt = real
            self._keep(found, arguments)

    @quiet
    def _keep(self, found: list[Any], arguments: tuple[Any, ...]) -> None:
        norms = [tensor for tensor in found if tensor.shape in _ONE]
        if norms:
            self.offer(norms[-1])
        elif arguments and arguments[0]:
            say_once("the gradients' norm is not seen: this version of Paddle's clip makes it without paddle.sqrt()")


def follow(norm: Norm) -> None:
    """From now on what ``clip_grad_norm_`` returns is offered to ``norm``."""
    global _current, _installed
    _current = norm
    if _installed:
        return
    _installed = True
    from paddle.nn import utils

    original = getattr(utils, "clip_grad_norm_", None)
    if original is None:
        say_once("the gradients' norm is not taken from clip_grad_norm_: this Paddle has no such function")
        return

    @functools.wraps(original)
    def clip_grad_norm_(*arguments: Any, **options: Any) -> Any:
        total = original(*arguments, **options)
        _offer(total, options.get("norm_type", arguments[2] if len(arguments) > 2 else 2.0))  # noqa: PLR2004
        return total

    replace("clip_grad_norm_", original, clip_grad_norm_)


@quiet
def _offer(total: Any, norm_type: Any) -> None:
    if _current is not None and float(norm_type) == 2.0 and total.shape in _ONE:  # noqa: PLR2004
        _current.offer(total)
