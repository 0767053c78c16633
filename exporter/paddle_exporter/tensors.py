"""Values of tensors without waiting for the device they live on.

``.item()`` of a GPU tensor waits for everything queued on its stream, even when the tensor is old. So a copy to
pinned host memory is queued behind the work, and read at a later step, when it is there.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Callable

AT_MOST = 256
"""Copies under way; a device that is further behind than this has its newer values dropped, and counted."""

_ONE: tuple[list[int], ...] = ([], [1])  # shapes of one number; ``size`` of a Paddle tensor costs 4 us, ``shape`` 0.1

Copy = tuple[Any, Callable[[], bool]]
"""A host tensor, and whether its value has arrived."""


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a Paddle tensor, told without importing Paddle."""
    return hasattr(value, "place") and hasattr(value, "item") and hasattr(value, "detach")


def start_copy(tensor: Any) -> Copy:
    """Queue a copy of ``tensor`` to pinned memory. Raises what Paddle raises on devices without such a copy."""
    from .hooks.device_copy import copy_to_host

    return copy_to_host(tensor)


class TensorQueue:
    """Hands the numbers of tensors to ``store(slot, number)``: at once for CPU tensors, later for others."""

    def __init__(
        self, store: Callable[[int, float], None], every: int, start: Callable[[Any], Copy] = start_copy
    ) -> None:
        self._store = store
        self._every = every
        self._start: Callable[[Any], Copy] | None = start
        self._waiting: deque[tuple[int, Any, Callable[[], bool]]] = deque()
        self._offered: dict[int, int] = {}
        self._polling = threading.Lock()

    def take(self, slot: int, tensor: Any) -> str | None:
        """Store the one number of ``tensor``, now or later. Returns the reason when it is dropped, else None."""
        if tensor.shape not in _ONE and tensor.size != 1:
            return "not_a_number"
        if tensor.place.is_cpu_place():
            self._store(slot, float(tensor.item()))
            return None
        if self._start is not None:
            if len(self._waiting) >= AT_MOST:
                return "unread"
            try:
                host, arrived = self._start(tensor.detach())
            except Exception:  # whatever the device's plugin raises: this device cannot, and will not later
                self._start = None
            else:
                self._waiting.append((slot, host, arrived))
                return None
        # The one place that waits for a device: rarely, and only where copies in the background do not exist.
        offered = self._offered.get(slot, 0)
        self._offered[slot] = offered + 1
        if offered % self._every == 0:
            self._store(slot, float(tensor.item()))
        return None

    def poll(self) -> None:
        """Store the values that have arrived since."""
        waiting = self._waiting
        if not waiting or not self._polling.acquire(blocking=False):  # another thread is at it
            return
        try:
            while waiting and waiting[0][2]():
                slot, host, _ = waiting.popleft()
                self._store(slot, float(host.item()))
        except Exception:  # a device that is lost: what is under way will not arrive
            waiting.clear()
        finally:
            self._polling.release()
