"""Values of tensors on a device: taken without waiting for it, in their order, and never twice."""

from __future__ import annotations

import gc
import sys
import threading
import types
import weakref

import pytest

from paddle_exporter.tensors import AT_MOST, TensorQueue, is_tensor, start_copy

LOSS = "paddle_train_loss"
STEPS = "paddle_train_steps_total"
DROPPED = "paddle_exporter_dropped_scalars_total"


class WaitedError(AssertionError):
    """Somebody waited for the device."""


class Place:
    def __init__(self, cpu: bool) -> None:
        self.cpu = cpu

    def is_cpu_place(self) -> bool:
        return self.cpu


class CpuTensor:
    def __init__(self, value, shape=()) -> None:
        self.value, self.shape, self.place = value, list(shape), Place(cpu=True)

    @property
    def size(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count

    def item(self):
        return self.value

    def detach(self):
        return self


class GpuTensor(CpuTensor):
    """Whatever needs its value raises; its detached self has no graph."""

    def __init__(self, value, shape=(1,), graph=None) -> None:
        super().__init__(value, shape)
        self.place = Place(cpu=False)
        self.graph = graph

    def item(self):
        raise WaitedError

    __float__ = __int__ = __bool__ = __index__ = __array__ = numpy = cpu = tolist = item

    def detach(self):
        return GpuTensor(self.value, self.shape)


class Device:
    """Copies arrive when it is told so."""

    def __init__(self) -> None:
        self.started = self.done = 0
        self.sources = []

    def start(self, tensor):
        assert isinstance(tensor, GpuTensor)
        assert tensor.graph is None
        self.started += 1
        number = self.started
        self.sources.append(weakref.ref(tensor))
        return CpuTensor(tensor.value), lambda _source=tensor: self.done >= number


class Stored(list):
    def __call__(self, slot, number) -> None:
        self.append((slot, number))


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def stored():
    return Stored()


@pytest.fixture
def queue(device, stored):
    return TensorQueue(stored, every=10, start=device.start)


@pytest.fixture
def on_device(recorder, device):
    """A recorder whose tensors live on the device."""
    recorder._tensors = TensorQueue(recorder._number, 10, device.start)
    return recorder


def test_a_step_with_a_tensor_on_a_device_counts_and_never_waits(on_device, device, scrape):
    for step in range(5):
        on_device.step(loss=GpuTensor(float(step)), samples=2)
        on_device.log(grad_norm=GpuTensor(7.0))
    seen = scrape(on_device)
    assert (seen(STEPS), seen("paddle_train_samples_total"), seen(LOSS)) == (5, 10, None)
    device.done = 1
    on_device.step(loss=GpuTensor(5.0), samples=2)
    assert scrape(on_device)(LOSS) == 0.0
    device.done = device.started
    on_device.log(other=1.0)
    seen = scrape(on_device)
    assert (seen(LOSS), seen("paddle_train_grad_norm"), seen(STEPS)) == (5.0, 7.0, 6)
    assert seen.total(DROPPED) == 0


def test_a_tensors_graph_is_not_held(queue):
    class Graph:
        pass

    graph = Graph()
    held = weakref.ref(graph)
    queue.take(1, GpuTensor(1.0, graph=graph))
    del graph
    gc.collect()
    assert held() is None


def test_values_arrive_in_their_order_and_a_late_one_holds_up_the_next(queue, device, stored):
    for value in (1.0, 2.0, 3.0):
        assert queue.take(5, GpuTensor(value)) is None
    queue.poll()
    assert stored == []
    device.done = 2
    queue.poll()
    assert stored == [(5, 1.0), (5, 2.0)]
    queue.poll()
    device.done = 3
    queue.poll()
    assert stored == [(5, 1.0), (5, 2.0), (5, 3.0)]


def test_a_copy_lets_its_source_go_when_it_has_arrived(queue, device):
    queue.take(1, GpuTensor(1.0))
    gc.collect()
    assert device.sources[0]() is not None
    device.done = 1
    queue.poll()
    gc.collect()
    assert device.sources[0]() is None


def test_of_a_device_far_behind_the_newest_values_are_dropped_and_counted(on_device, device, scrape):
    for _ in range(AT_MOST + 3):
        on_device.step(loss=GpuTensor(1.0))
    seen = scrape(on_device)
    assert (seen(STEPS), seen(DROPPED, reason="unread")) == (AT_MOST + 3, 3)
    device.done = AT_MOST
    on_device.step(loss=GpuTensor(2.0))
    device.done += 1
    on_device.step(loss=3.0)
    assert scrape(on_device)(LOSS) == 3.0
    assert scrape(on_device)(DROPPED, reason="unread") == 3


def test_where_copies_do_not_exist_every_tenth_value_is_read(stored):
    attempts = []

    def start(tensor):
        attempts.append(tensor)
        raise OSError("no such copy")

    class Readable(GpuTensor):
        def item(self):
            return self.value

        def detach(self):
            return Readable(self.value)

    queue = TensorQueue(stored, every=10, start=start)
    for value in range(25):
        assert queue.take(1, Readable(float(value))) is None
        assert queue.take(2, Readable(-float(value))) is None
    assert stored == [(1, 0.0), (2, 0.0), (1, 10.0), (2, -10.0), (1, 20.0), (2, -20.0)]
    assert len(attempts) == 1


def test_a_device_that_is_lost_loses_what_was_under_way_and_no_step(on_device, device, scrape):
    def lost():
        raise RuntimeError("CUDA error")

    on_device._tensors._waiting.append((5, CpuTensor(1.0), lost))
    on_device.step(loss=GpuTensor(1.0))
    on_device.step(loss=GpuTensor(2.0))
    device.done = device.started
    on_device.step(samples=1)
    on_device.log(other=1.0)
    seen = scrape(on_device)
    assert (seen(STEPS), seen(LOSS)) == (3, 2.0)


@pytest.mark.parametrize(
    ("shape", "reason"), [((), None), ((1,), None), ((1, 1), None), ((2,), "not_a_number"), ((0,), "not_a_number")]
)
def test_one_number_of_any_shape_is_taken_and_more_are_not(queue, device, stored, shape, reason):
    assert queue.take(1, CpuTensor(2.5, shape)) == reason
    assert queue.take(2, GpuTensor(2.5, shape)) == reason
    assert stored == ([] if reason else [(1, 2.5)])
    assert device.started == (0 if reason else 1)


def test_values_that_arrive_as_nan_are_counted_and_not_shown(on_device, device, scrape):
    on_device.step(loss=GpuTensor(1.0))
    on_device.step(loss=GpuTensor(float("nan")))
    device.done = 2
    on_device.log(other=1.0)
    seen = scrape(on_device)
    assert (seen(LOSS), seen("paddle_train_nonfinite_total", scalar="loss")) == (1.0, 1)


def test_a_second_thread_that_polls_leaves_it_to_the_first(stored):
    others = 2

    def arrived():
        nonlocal others
        if others:
            others -= 1
            other = threading.Thread(target=queue.poll)
            other.start()
            other.join()
        return True

    queue = TensorQueue(stored, every=10, start=lambda tensor: (CpuTensor(tensor.value), arrived))
    for value in (1.0, 2.0, 3.0):
        queue.take(1, GpuTensor(value))
    queue.poll()
    assert stored == [(1, 1.0), (1, 2.0), (1, 3.0)]


def test_what_a_tensor_is_is_told_without_paddle():
    assert is_tensor(CpuTensor(1.0))
    for other in (1.0, "1", None, [1.0], object(), types.SimpleNamespace(item=1)):
        assert not is_tensor(other)


def test_the_copy_is_queued_behind_the_work_and_then_an_event(monkeypatch):
    calls = []

    class Event:
        def record(self, stream) -> None:
            calls.append(("record", stream))

        def query(self) -> bool:
            return len(calls) > 2

    class Tensor:
        def _copy_to(self, place, blocking):
            calls.append(("copy", place, blocking))
            return "host"

    cuda = types.SimpleNamespace(Event=Event, current_stream=lambda: "stream")
    fake = types.SimpleNamespace(CUDAPinnedPlace=lambda: "pinned", device=types.SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "paddle", fake)
    tensor = Tensor()
    kept = weakref.ref(tensor)
    host, arrived = start_copy(tensor)
    assert host == "host"
    assert calls == [("copy", "pinned", False), ("record", "stream")]
    del tensor
    assert kept() is not None
    assert not arrived()
    calls.append("done")
    assert arrived()
