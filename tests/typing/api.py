"""The public API as a typed user's code: mypy checks this file, nothing runs it."""

from __future__ import annotations

import paddle_exporter
from paddle_exporter import Run


def train(batches: list[list[float]]) -> None:
    with paddle_exporter.start(run="typed", target_steps=10_000, tags={"team": "nlp"}, port=9810) as run:
        bound = run.bind("samples", "loss")
        for batch in batches:
            with run.phase("data"):
                loss = sum(batch)
            run.step(samples=64, tokens=4096, loss=loss, learning_rate=1e-3, **{"train/acc": 0.5})
            run.log(grad_norm=1.0)
            bound(64, loss)
        run.eval(loss=0.1, acc=0.9)
        run.epoch(1)
        run.checkpoint(1.5, ok=True)
        url: str | None = run.url
        print(run.name, run.rank, url)
    run.finish()


def hand_written(run: Run, model: object, optimizer: object) -> Run:
    return run.attach(model=model, optimizer=optimizer)
