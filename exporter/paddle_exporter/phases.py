"""Phases of the training thread: whose time it is, open phase included."""

from __future__ import annotations

from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from .catalogue import NOT_A_STEP
from .slots import NAN, PHASE, PHASE_SINCE

if TYPE_CHECKING:
    from .recorder import Recorder


class Phase:
    """A reusable context manager; see ``Recorder.phase``. Phases nest; only the training thread's are counted."""

    __slots__ = ("_index", "_recorder", "_slot", "entered", "name")

    def __init__(self, recorder: Recorder | None, name: str, index: int, slot: int) -> None:
        self.name = name
        self.entered = 0.0
        self._recorder = recorder
        self._index = index
        self._slot = slot

    def __enter__(self) -> Phase:
        recorder = self._recorder
        if recorder is not None and get_ident() == recorder._thread:
            now = monotonic()
            stack = recorder._open_phases
            if stack:
                stack[-1]._pause(now)
            if self not in stack:
                self.entered = now
            stack.append(self)
            self._resume(now)
            recorder._commit()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        recorder = self._recorder
        if recorder is not None and recorder._open_phases and get_ident() == recorder._thread:
            now = monotonic()
            stack = recorder._open_phases
            stack.pop()._pause(now)
            if self.name in NOT_A_STEP and not any(phase.name in NOT_A_STEP for phase in stack):
                recorder._not_a_step(self.entered, now)
            if stack:
                stack[-1]._resume(now)
            else:
                recorder._values[PHASE] = NAN
                recorder._values[PHASE_SINCE] = now
            recorder._commit()

    def _pause(self, now: float) -> None:
        values = self._recorder._values  # type: ignore[union-attr]  # only called where there is one
        values[self._slot] += now - values[PHASE_SINCE]

    def _resume(self, now: float) -> None:
        values = self._recorder._values  # type: ignore[union-attr]
        values[PHASE] = self._index
        values[PHASE_SINCE] = now
