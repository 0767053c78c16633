"""Values of any type, stored one by one: what a step falls back to when it is not told plain numbers only."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from . import catalogue, slots
from .catalogue import DROP_REASONS
from .detect import SpikeDetector
from .page import PageWriter
from .scalars import Kind, Layout, ScalarTable
from .tensors import TensorQueue, is_tensor

log = logging.getLogger("paddle_exporter")

DETECT_AT = 64
"""Values that may wait for their detector."""


class ValueStore:
    """Stores values into ``page``: finite numbers as they are, others into counters. No value makes it raise."""

    __slots__ = ("_commit", "_detectors", "_page", "_table", "_tensors", "_values", "_warned")

    def __init__(self, page: PageWriter, max_scalars: int, tensor_every: int) -> None:
        self._page = page
        self._values = page.values
        self._commit = page.commit
        self._warned: set[str] = set()
        self._table = ScalarTable(page, max_scalars, self._warn)
        self._tensors = TensorQueue(self._number, tensor_every)
        self._detectors = {"loss": SpikeDetector(), "grad_norm": SpikeDetector.for_norms()}

    def _layout(self, kind: Kind, names: tuple[str, ...]) -> Layout:
        return self._table.layouts[kind].get(names) or self._table.resolve(kind, names)

    def _put(self, layout: Layout, numbers: Collection[Any]) -> None:
        """Store ``numbers``, whatever they are, in the order of their layout."""
        self._tensors.poll()
        for slot in layout.own:
            self._values[slot] = slots.NAN
        for slot, value in zip(layout.slots, numbers):
            try:
                if slot < 0:
                    self._values[-slot] += 1.0
                elif value.__class__ is float:
                    self._number(slot, value)
                elif is_tensor(value):
                    layout.plain = False
                    self._tensor(slot, value)
                else:
                    self._number(slot, as_number(value))
            except Exception as error:  # its conversion may raise anything
                self._drop("not_a_number", f"a {type(value).__name__} is not a number ({type(error).__name__})")

    def _number(self, slot: int, value: float) -> None:
        if value - value == 0.0:
            self._values[slot] = value
            pending = self._table.watched.get(slot)
            if pending is not None:
                pending.append(value)
                if len(pending) >= DETECT_AT:
                    self._detect()
            return
        counter = self._table.nonfinite.get(slot)
        if counter is not None:
            self._values[counter] += 1.0
        else:
            self._drop("not_a_number", f"samples, tokens and global_step are finite numbers, not {value}")

    def _tensor(self, slot: int, tensor: Any) -> None:
        reason = self._tensors.take(slot, tensor)
        if reason is not None:
            self._drop(reason, "a tensor has more than one element, or its device is far behind")

    def _detect(self) -> None:
        for name, pending in self._table.pending.items():
            if pending:
                detector = self._detectors[name]
                self._values[slots.number(catalogue.SPIKES.name, name)] += detector.update(pending)
                self._values[slots.number(catalogue.ZSCORE.name, name)] = detector.z
                pending.clear()

    def _drop(self, reason: str, why: str) -> None:
        self._values[slots.DROPPED + DROP_REASONS.index(reason)] += 1.0
        self._warn(reason, f"a value is not recorded: {why}")

    def _trouble(self, where: str, error: Exception) -> None:
        """A call that made no sense: counted, said once, and training goes on."""
        self._drop("not_a_number", f"{where}() failed: {type(error).__name__}: {error}")
        self._commit()

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log.warning("%s (said once; counted in %s)", message, catalogue.DROPPED_SCALARS.name)


def as_number(value: Any) -> float:
    """The number that ``value`` is: an int, a bool, a numpy scalar or array of one element. TypeError if it is none."""
    if not isinstance(value, (int, float)) and hasattr(value, "dtype") and getattr(value, "size", 1) == 1:
        real = value.dtype.kind in "fiub"
        value = value.item()
        if real:  # numpy's long doubles stay what they are
            return float(value)
    if not isinstance(value, (int, float)):
        raise TypeError("not a number")
    return float(value)
