"""Mixed precision on the CPU: Paddle disables its GradScaler there, so it is told that this is a GPU."""

from __future__ import annotations

import sys
import types
from unittest import mock

import paddle
from report import BATCH, Net, digest, gauge, hand_over, loss_of, norm_of, report, scrape, start

SCALE = "paddle_train_loss_scale"
OVERFLOWS = (2, 3, 7)


def scaler(**settings):
    """A GradScaler that believes to be on a GPU."""
    tracer = mock.MagicMock()
    with mock.patch.object(paddle.amp.grad_scaler, "_dygraph_tracer", return_value=tracer):
        made = paddle.amp.GradScaler(init_loss_scaling=1024.0, **settings)
    assert made.is_enable()
    return made


def half_precision():
    """``scale`` disables a scaler outside of float16."""
    state = types.SimpleNamespace(amp_dtype="float16")
    return mock.patch.object(paddle.amp.grad_scaler, "amp_global_state", return_value=state, create=True)


def train(hooked: bool, name: str, minimize: bool = False, clip_function: bool = False, **settings):
    """Twelve updates; in three of them a gradient overflows."""
    net = Net()
    clip = None if clip_function else paddle.nn.ClipGradByGlobalNorm(0.05)
    optimizer = paddle.optimizer.AdamW(0.1, parameters=net.parameters(), grad_clip=clip)
    scale = scaler(**settings)
    run = start(name)
    if hooked:
        run.attach(model=net, optimizer=optimizer, scaler=scale, samples=BATCH)
    rows = []
    for step in range(12):
        loss = loss_of(net, step)
        if step in OVERFLOWS:
            loss = loss * float("inf")
        scaled = scale.scale(loss)
        scaled.backward()
        before = norm_of(net.parameters()) / scale._scale.item()
        if minimize:
            scale.minimize(optimizer, scaled)
        else:
            if clip_function:
                scale.unscale_(optimizer)
                paddle.nn.utils.clip_grad_norm_(net.parameters(), 0.05)
            scale.step(optimizer)
            scale.update()
        optimizer.clear_grad()
        rows.append([scale._scale.item(), gauge(run, SCALE), before, gauge(run, "paddle_train_grad_norm")])
    report(name, scrape(run), rows=rows, digest=digest(net))


def main() -> None:
    """All ways to use a scaler."""
    dynamic = {"incr_every_n_steps": 3, "decr_every_n_nan_or_inf": 1}
    # Paddle 3.3 calls float() of a tensor of shape [1] here, which numpy 2.4 refuses.
    paddle.amp.grad_scaler.float = lambda value: value.item() if hasattr(value, "item") else float(value)
    with half_precision():
        train(False, "plain", **dynamic)
        train(True, "step", **dynamic)
        train(True, "minimize", minimize=True, **dynamic)
        train(True, "function", clip_function=True, **dynamic)
        train(True, "static", use_dynamic_loss_scaling=False)
    net = Net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    disabled = paddle.amp.GradScaler()
    run = start("disabled").attach(optimizer=optimizer, scaler=disabled)
    for step in range(3):
        disabled.scale(loss_of(net, step)).backward()
        disabled.step(optimizer)
        disabled.update()
        optimizer.clear_grad()
    report("disabled", scrape(run), enabled=disabled.is_enable())


if __name__ == "__main__":
    main()
    hand_over()
    sys.exit(0)
