"""The global norm of the gradients, taken from where it is computed anyway: the clipping.

Hooks into ``_dygraph_clip`` of the clip that the watched optimizer has (ClipGradByGlobalNorm, or what fleet, sharding
and MoE put in its place), and into ``paddle.nn.utils.clip_grad_norm_``. A clip returns the gradients only, but each of
them makes the norm by ``paddle.sqrt`` of one number: that name is ours for the duration of the clip. Nothing is
computed twice, and ranks that share a norm report the same. Tested with paddlepaddle 2.6.2 and 3.3.1:
ClipGradByGlobalNorm on 1 and 2 ranks, fleet's and MoE's clip on 1; sharding's by its source only.

Without clipping, or with clipping by value or by each tensor's norm, there is no global norm to take.
"""

from __future__ import annotations

import functools
from threading import get_ident
from typing import Any, Callable

from .wrapping import Wrapped, quiet, replace, say_once, untraced, wrap

_ONE: tuple[list[int], ...] = ([], [1])  # shapes of one number
_NO_GLOBAL_NORM = ("ClipGradByValue", "ClipGradByNorm")

_current: Norm | None = None
_installed = False


class Norm:
    """The norm that was taken since the last update."""

    def __init__(self) -> None:
        import paddle

        self.clip: Any = self  # nothing was looked at yet
        self.seen = False  # whether there ever was one
        self._found: list[Any] = []
        self._wrapped: list[Wrapped] = []
        self._paddle = paddle
        self._sqrt = paddle.sqrt
        self._last: Any = None
        self._listening = 0  # the thread that clips
        self._tap = self._call_sqrt

    def follow(self, optimizer: Any) -> None:
        """Watch the clips that ``optimizer`` has now. Called whenever it is another: fleet and sharding replace it."""
        self.release()
        groups = [group for group in getattr(optimizer, "_param_groups", None) or () if isinstance(group, dict)]
        self.clip = getattr(optimizer, "_grad_clip", None)
        clips = {id(clip): clip for clip in (self.clip, *(group.get("grad_clip") for group in groups))}
        for clip in clips.values():
            if clip is not None and type(clip).__name__ not in _NO_GLOBAL_NORM:
                wrapped = wrap(clip, "_dygraph_clip", self._call_clip)
                if wrapped is None:
                    say_once(f"the gradients' norm is not seen: a {type(clip).__name__} has no _dygraph_clip()")
                else:
                    self._wrapped.append(wrapped)

    def release(self) -> None:
        """Watch no clip any longer."""
        for wrapped in reversed(self._wrapped):
            wrapped.release()
        self._wrapped, self.clip = [], self

    def offer(self, tensor: Any) -> None:
        """A norm was computed: a tensor of one number."""
        self.seen = True
        self._found.append(tensor)

    def take(self) -> Any:
        """The norm since it was last taken, as a tensor; None if there was none."""
        if not self._found:
            return None
        found, self._found = self._found, []
        if len(found) == 1:
            return found[0]
        with self._paddle.no_grad():  # parameter groups are clipped one by one
            return self._paddle.sqrt(sum(norm * norm for norm in found))

    def _call_clip(
        self, _: str, method: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        if self._listening:
            return method(*arguments, **options)
        paddle = self._paddle
        real = self._sqrt = paddle.sqrt
        self._last, self._listening = None, get_ident()
        paddle.sqrt = self._tap
        try:
            result = method(*arguments, **options)
        finally:
            self._listening = 0
            if paddle.sqrt is self._tap:
                paddle.sqrt = real
        if self._last is not None:
            self.offer(self._last)
            self._last = None
        elif arguments and arguments[0]:
            say_once("the gradients' norm is not seen: this Paddle's clip makes it without paddle.sqrt()")
        return result

    def _call_sqrt(self, *arguments: Any, **options: Any) -> Any:
        result = self._sqrt(*arguments, **options)
        if get_ident() == self._listening and getattr(result, "shape", None) in _ONE:
            self._last = result
        return result


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

    @untraced
    @functools.wraps(original)
    def clip_grad_norm_(*arguments: Any, **options: Any) -> Any:
        total = original(*arguments, **options)
        _offer(total, options.get("norm_type", arguments[2] if len(arguments) > 2 else 2.0))
        return total

    replace("clip_grad_norm_", original, clip_grad_norm_)


@quiet
def _offer(total: Any, norm_type: Any) -> None:
    if _current is not None and float(norm_type) == 2.0 and total.shape in _ONE:
        _current.offer(total)
