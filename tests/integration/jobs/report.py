"""What the jobs share: a small model with fixed weights and data, and how they hand their results to the test."""

from __future__ import annotations

import hashlib
import json
import sys
import time
import traceback
import urllib.request

import numpy as np
import paddle

import paddle_exporter

BATCH = 8
_reports = {}


def start(name: str, **settings):
    """A run that is served on a free port."""
    return paddle_exporter.start(name, address="127.0.0.1", port=0, linger=0, **settings)


def scrape(run) -> str:
    """What the run exposes now."""
    with urllib.request.urlopen(run.url, timeout=10) as answer:
        return answer.read().decode()


def report(name: str, text: str, **facts) -> None:
    """Keep what is exposed, and facts to compare it with."""
    _reports[name] = {"scrape": text, "facts": facts}


def attempt(job) -> None:
    """Run a job; what it raises is its report's lack, and does not take the others along."""
    try:
        job()
    except Exception:
        traceback.print_exc()


def hand_over() -> None:
    """Print all reports, for the test to read."""
    sys.stdout.flush()
    print("\nREPORTS " + json.dumps({"paddle": paddle.__version__, **_reports}), flush=True)


def gauge(run, metric: str) -> float:
    """The value a gauge has now; NaN before the first."""
    slot = run._table._slots.get((metric, ""))
    return float("nan") if slot is None else run._values[slot]


class Net(paddle.nn.Layer):
    """Two layers, with weights that a seed fixes."""

    def __init__(self, seed: int = 7) -> None:
        super().__init__()
        paddle.seed(seed)
        self.hidden = paddle.nn.Linear(4, 16)
        self.out = paddle.nn.Linear(16, 2)

    def forward(self, x):
        return self.out(paddle.tanh(self.hidden(x)))


class Data(paddle.io.Dataset):
    """Samples that their index fixes."""

    def __init__(self, size: int, sleep: float = 0.0) -> None:
        super().__init__()
        self.size, self.sleep = size, sleep

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int):
        time.sleep(self.sleep)
        rng = np.random.RandomState(index)
        return rng.rand(4).astype("float32"), np.int64(index % 2)


def batch(step: int):
    """The batch of a step."""
    rng = np.random.RandomState(100 + step)
    x = paddle.to_tensor(rng.rand(BATCH, 4).astype("float32") * 4)
    return x, paddle.to_tensor(rng.randint(0, 2, [BATCH]).astype("int64"))


def loss_of(net, step: int):
    """The loss of a step's batch."""
    x, y = batch(step)
    return paddle.nn.functional.cross_entropy(net(x), y)


def norm_of(parameters) -> float:
    """The gradients' global norm, in double precision and without Paddle."""
    grads = [p.grad.numpy().astype("float64") for p in parameters if p.grad is not None]
    return float(np.sqrt(sum((grad**2).sum() for grad in grads)))


def digest(net) -> str:
    """Every bit of the weights."""
    return hashlib.sha256(b"".join(p.numpy().tobytes() for p in net.parameters())).hexdigest()
