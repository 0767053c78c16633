"""Paddle's asynchronous copy from a GPU to pinned host memory.

Written against paddlepaddle-gpu 2.6 and 3.x; needs Tensor._copy_to and paddle.device.cuda.Event. Where one is
missing the caller falls back to reading every N-th value.
"""

from __future__ import annotations

from typing import Any, Callable


def copy_to_host(tensor: Any) -> tuple[Any, Callable[[], bool]]:
    """Queue a copy of the detached GPU ``tensor``; returns the host tensor and a test for its arrival."""
    import paddle

    host = tensor._copy_to(paddle.CUDAPinnedPlace(), False)
    event = paddle.device.cuda.Event()
    event.record(paddle.device.cuda.current_stream())

    def arrived(_source: Any = tensor) -> bool:  # the source must outlive the copy
        return bool(event.query())

    return host, arrived
