"""Updates of an optimizer.

Hooks into ``step``, ``minimize`` and ``_apply_optimize`` of the one optimizer that is watched, and of those it wraps
(fleet's, sharding's, LookAhead). ``_apply_optimize`` is what sharding calls without the others. Tested with
paddlepaddle 2.6.2 and 3.3.1: SGD, Momentum, Adam, AdamW, Lamb, LBFGS, LookAhead, parameter groups, GradScaler,
DataParallel. Where ``to_static`` compiles a whole function (full_graph), an update in it runs no Python, and is not
seen.
"""

from __future__ import annotations

import weakref
from typing import Any, Callable, Protocol

from .wrapping import say_once, wrap

_METHODS = ("step", "minimize", "_apply_optimize")
_INNER = ("_inner_opt", "_optim", "inner_optimizer", "_inner_optimizer")
_DEPTH = 8


class Listener(Protocol):
    """Told of updates; what it does must not raise."""

    def before(self, optimizer: Any) -> None:
        """An update begins; ``optimizer`` is the innermost one, which has the clip and the parameters."""

    def after(self, optimizer: Any) -> None:
        """It ended without an error."""


def chain(optimizer: Any) -> list[Any]:
    """``optimizer`` and what it wraps, the innermost last."""
    links = [optimizer]
    while len(links) < _DEPTH:
        names = getattr(links[-1], "__dict__", {})
        inner = next((names[name] for name in _INNER if hasattr(names.get(name), "step")), None)
        if inner is None or any(inner is link for link in links):
            break
        links.append(inner)
    return links


class Watch:
    """Tells ``listener`` of every update of ``optimizer``, once each, however many methods call each other in it.

    The optimizer holds gigabytes: it is not kept alive here.
    """

    def __init__(self, optimizer: Any, listener: Listener) -> None:
        links = chain(optimizer)
        self._outer, self._inner = weakref.ref(optimizer), weakref.ref(links[-1])
        self._listener = listener
        self._inside = False
        wrapped = [wrap(link, name, self._call) for link in links for name in _METHODS]
        self._wrapped = [weakref.ref(one) for one in wrapped if one is not None]
        if not self._wrapped:
            say_once(f"updates of a {type(optimizer).__name__} are not seen: it has no step() and no minimize()")

    @property
    def optimizer(self) -> Any:
        """What was given to be watched; None when it is gone."""
        return self._outer()

    @property
    def works(self) -> bool:
        """Whether there was anything to hook into."""
        return bool(self._wrapped)

    def release(self) -> None:
        """Watch no longer."""
        for one in reversed([reference() for reference in self._wrapped]):
            if one is not None:
                one.release()

    def _call(self, _: str, method: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self._inside:
            return method(*arguments, **options)
        optimizer = self._inner()
        self._inside = True
        try:
            self._listener.before(optimizer)
            result = method(*arguments, **options)
        finally:
            self._inside = False
        self._listener.after(optimizer)
        return result
