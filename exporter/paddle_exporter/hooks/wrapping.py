"""How hooks put themselves around what is not ours: nothing of theirs raises, and what they wrapped can be unwrapped.

Methods are wrapped on the one object that is watched, not on its class, so that other optimizers, clips and scalers
of the process stay as they are. Functions are wrapped in every module that has them under their own name.
"""

from __future__ import annotations

import copy
import functools
import logging
import sys
from types import MethodType
from typing import Any, Callable, TypeVar, cast

log = logging.getLogger("paddle_exporter")

Function = TypeVar("Function", bound=Callable[..., Any])
Around = Callable[[str, Callable[..., Any], "tuple[Any, ...]", "dict[str, Any]"], Any]
"""Called in place of a method with its name, itself and its arguments; returns what the method returns."""

_said: set[str] = set()


def say_once(message: str, subject: str = "") -> None:
    """Log a warning, the first one about ``subject``, which is the message itself if none is given."""
    if (subject or message) not in _said:
        _said.add(subject or message)
        log.warning("%s", message)


def quiet(function: Function) -> Function:
    """``function``, whose errors are logged, the first of each type, and never raised; it returns None then."""

    @functools.wraps(function)
    def safe(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except Exception as error:
            name = function.__qualname__
            say_once(f"a hook does not work here, training goes on: {name}: {error!r}", f"{name} {type(error)}")
            return None

    return cast("Function", safe)


def tracer() -> Callable[[Any], Any]:
    """Sets what ``paddle.jit.to_static`` traces Python by, and returns what it was; None leaves what follows to Python.

    Called first in whatever we put in the place of Paddle's own: tracing our code may raise what nobody catches.
    """
    framework = getattr(sys.modules.get("paddle"), "framework", None)
    setter = getattr(getattr(framework, "core", None), "set_eval_frame", None)
    return setter if setter is not None else lambda _: None


def untraced(function: Function) -> Function:
    """``function``, which ``to_static`` leaves to Python."""
    trace = tracer()

    @functools.wraps(function)
    def python(*arguments: Any, **options: Any) -> Any:
        traced = trace(None)
        try:
            return function(*arguments, **options)
        finally:
            trace(traced)

    return cast("Function", python)


class Wrapped:
    """Stands in ``owner.__dict__`` for the method ``name`` and calls ``around`` in its place.

    It holds its owner, as a bound method does; Paddle's optimizers hold bound methods of their own that way.
    """

    def __init__(self, owner: Any, name: str, around: Around) -> None:
        self.__name__ = name
        self._owner = owner
        self._around: Around | None = around
        self._before = vars(owner).get(name)  # somebody's wrapper, put there before ours
        function: Any = getattr(type(owner), name, None)
        self._function = function
        self._trace = tracer()
        self._method: Any = self._before or MethodType(function, owner)
        vars(owner)[name] = self

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the method, by way of ``around``."""
        traced = self._trace(None)
        try:
            if self._around is None:
                return self._method(*arguments, **options)
            return self._around(self.__name__, self._method, arguments, options)
        finally:
            self._trace(traced)

    def release(self) -> None:
        """Put back what was there; what somebody has wrapped in turn stays, and only passes on."""
        self._around = None
        names = vars(self._owner)
        if names.get(self.__name__) is not self:
            return
        if self._before is None:
            del names[self.__name__]
        else:
            names[self.__name__] = self._before

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the owner gets a method of its own, and is not watched."""
        if self._before is not None:
            return copy.deepcopy(self._before, memo)
        return MethodType(self._function, copy.deepcopy(self._owner, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._owner, self.__name__)


def wrap(owner: Any, name: str, around: Around) -> Wrapped | None:
    """Call ``around`` in place of the method ``name`` of this one object; None where it has no such method."""
    if not hasattr(owner, "__dict__") or not (callable(getattr(type(owner), name, None)) or name in vars(owner)):
        return None
    return Wrapped(owner, name, around)


def replace(name: str, original: Any, replacement: Any) -> None:
    """Put ``replacement`` wherever a loaded module has ``original`` as ``name``, ``from`` imports included."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if isinstance(names, dict) and names.get(name) is original:
            names[name] = replacement
