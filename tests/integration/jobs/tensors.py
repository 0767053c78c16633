"""Real tensors of all kinds, handed to ``step`` and ``log``."""

from __future__ import annotations

import gc
import sys
import weakref

import paddle
from report import gauge, hand_over, report, scrape, start

from paddle_exporter.tensors import is_tensor

LOSS = "paddle_train_loss"


def made() -> dict:
    """Tensors whose one number is 2.5, or 2 where it is an integer."""
    tensors = {}
    for dtype in ("float32", "float64", "float16", "bfloat16", "int32", "int64"):
        for shape in ([], [1], [1, 1]):
            tensors[f"{dtype}{shape}"] = paddle.full(shape, 2.5, dtype="float32").astype(dtype)
    weight = paddle.create_parameter([1], "float32", default_initializer=paddle.nn.initializer.Constant(2.5))
    return {**tensors, "parameter": weight, "needs a gradient": weight * 1.0}


class Graph(paddle.autograd.PyLayer):
    """Something in a loss's graph that can be seen to go."""

    kept = None

    class Held:
        """What the graph holds."""

    @staticmethod
    def forward(ctx, x):
        ctx.held = Graph.Held()
        Graph.kept = weakref.ref(ctx.held)
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def main() -> None:
    """Each kind by itself, so that none hides behind another."""
    run = start("tensors")
    values = {}
    for name, tensor in made().items():
        run.log(loss=-1.0)
        before = run._count
        run.step(loss=tensor)
        values[name] = [is_tensor(tensor), gauge(run, LOSS), run._count - before]
    weight = paddle.create_parameter([1], "float32")
    loss = Graph.apply(weight)
    run.step(loss=loss)
    held = Graph.kept() is not None
    del loss
    gc.collect()
    freed = Graph.kept() is None
    run.step(loss=paddle.ones([2]))
    run.step(loss=paddle.to_tensor(float("nan")))
    others = [is_tensor(other) for other in (1.0, "x", None, paddle, weight.numpy(), paddle.float32)]
    report("tensors", scrape(run), values=values, held=held, freed=freed, others=others, last=gauge(run, LOSS))


if __name__ == "__main__":
    main()
    hand_over()
    sys.exit(0)
