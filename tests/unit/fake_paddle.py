"""A small Paddle of our own: what the hooks hook into, and nothing else."""

from __future__ import annotations

import sys
import threading
import types

from paddle_exporter.hooks import attach, checkpoint, dataloader, gradclip, wrapping


class Tensor:
    """One number on the CPU."""

    def __init__(self, value, shape=()) -> None:
        self.value, self.shape = value, list(shape)
        self.place = types.SimpleNamespace(is_cpu_place=lambda: True)

    def item(self):
        return self.value

    def detach(self):
        return self

    def __mul__(self, other):
        return Tensor(self.value * other.value)

    def __radd__(self, other):
        return Tensor(other + self.value)

    def __add__(self, other):
        return Tensor(self.value + other.value)


class Clip:
    """A clip by global norm: of as many numbers as it is given."""

    def __call__(self, grads):
        return self._dygraph_clip(grads)

    def _dygraph_clip(self, grads):
        sys.modules["paddle"].sqrt(Tensor(sum(grads), (1,)))
        return [sys.modules["paddle"].sqrt(Tensor(0.0, (3, 3))), *grads][1:]


class Optimizer:
    """Updates nothing."""

    def __init__(self, grad_clip=None, groups=()) -> None:
        self._grad_clip = grad_clip
        self._param_groups = list(groups)
        self._auxiliary_vars = {}
        self.grads = [9.0, 16.0]
        self.updates = 0

    def step(self) -> None:
        for group in self._param_groups or [{"grad_clip": self._grad_clip}]:
            self._apply_optimize(group["grad_clip"])

    def minimize(self, loss) -> str:
        self._apply_optimize(self._grad_clip)
        return loss

    def _apply_optimize(self, clip) -> None:
        if clip is not None:
            clip(self.grads)
        self.updates += 1

    def get_lr(self) -> float:
        return 0.5


class Sharding:
    """Calls nothing of the optimizer it wraps but ``_apply_optimize``."""

    def __init__(self, optimizer) -> None:
        self._inner_opt = optimizer

    def step(self) -> None:
        self._inner_opt._apply_optimize(self._inner_opt._grad_clip)


class Loader:
    def __init__(self, batches) -> None:
        self.batches = batches


class Batches:
    def __init__(self, batches) -> None:
        self.batches = iter(batches)

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self.batches)
        if isinstance(batch, Exception):
            raise batch
        return batch() if callable(batch) else batch


class Scaler:
    """A scaler whose flag and scale are what the test says."""

    _enable = True

    def __init__(self) -> None:
        self._scale = Tensor(1024.0, (1,))
        self._cache_found_inf = None

    def step(self, optimizer) -> None:
        optimizer.step()

    def update(self) -> None:
        pass

    def minimize(self, optimizer, loss):
        return optimizer.minimize(loss)


def install(monkeypatch) -> types.ModuleType:
    """Make it the Paddle of this process, into which nothing was hooked yet."""
    loaded = types.ModuleType("paddle")
    loaded.dynamic = True
    loaded.in_dynamic_mode = lambda: loaded.dynamic
    loaded.sqrt = lambda x: Tensor(x.value**0.5, x.shape)
    loaded.no_grad = threading.Lock  # any context
    loaded.nn = types.SimpleNamespace(utils=types.ModuleType("paddle.nn.utils"))
    loaded.nn.utils.clip_grad_norm_ = lambda parameters, max_norm, norm_type=2.0: parameters
    loaded.save = lambda obj, path: obj(path) if callable(obj) else None
    loaded.distributed = types.ModuleType("paddle.distributed")

    def save_state_dict(state_dict, path):
        return loaded.save(state_dict, path)

    loaded.distributed.save_state_dict = save_state_dict
    single = type("Single", (Batches,), {"__next__": Batches.__next__})
    multi = type("Multi", (Batches,), {"__next__": Batches.__next__})
    loader = type("DataLoader", (Loader,), {"__iter__": lambda self: single(self.batches)})
    iterators = types.ModuleType("paddle.io.dataloader.dataloader_iter")
    iterators._DataLoaderIterSingleProcess = single
    iterators._DataLoaderIterMultiProcess = multi
    loaded.io = types.ModuleType("paddle.io")
    loaded.io.get_worker_info = lambda: None
    loaded.io.DataLoader = loader
    loaded.io.dataloader = types.ModuleType("paddle.io.dataloader")
    loaded.io.dataloader.dataloader_iter = iterators
    for module in (loaded, loaded.distributed, loaded.io, loaded.io.dataloader, iterators, loaded.nn.utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "paddle.nn", loaded.nn)
    for hook in (checkpoint, dataloader, gradclip):
        monkeypatch.setattr(hook, "_installed", False)
    monkeypatch.setattr(checkpoint, "_saves", None)
    monkeypatch.setattr(dataloader, "_run", None)
    monkeypatch.setattr(gradclip, "_current", None)
    monkeypatch.setattr(attach, "_loop", None)
    monkeypatch.setattr(wrapping, "_said", set())
    return loaded
