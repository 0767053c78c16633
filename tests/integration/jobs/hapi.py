"""``paddle.Model.fit`` with the callback."""

from __future__ import annotations

import sys
import tempfile

import paddle
from report import Data, Net, digest, hand_over, report, scrape, start

from paddle_exporter.hooks.hapi import Callback

RATES: list[float] = []


class Spy(paddle.callbacks.Callback):
    """What the callbacks were told."""

    def __init__(self) -> None:
        super().__init__()
        self.losses, self.evals = [], []

    def on_train_batch_end(self, step, logs=None):
        self.losses.append(float(logs["loss"][0]))
        RATES.append(self.model._optimizer.get_lr())

    def on_eval_end(self, logs=None):
        self.evals.append([float(logs["loss"][0]), float(logs["acc"])])


def model():
    net = Net()
    scheduler = paddle.optimizer.lr.StepDecay(0.1, step_size=3)
    clip = paddle.nn.ClipGradByGlobalNorm(0.05)
    made = paddle.Model(net)
    made.prepare(
        paddle.optimizer.AdamW(scheduler, parameters=net.parameters(), grad_clip=clip),
        paddle.nn.CrossEntropyLoss(),
        paddle.metric.Accuracy(),
    )
    return made


def fit(name: str, hooked: bool = True, twice: bool = False, **settings) -> None:
    """Three epochs, each with an evaluation and a checkpoint."""
    RATES.clear()
    trained, spy = model(), Spy()
    run = start(name)
    callbacks = [spy, *([Callback()] if hooked else []), *([Callback(run)] if twice else [])]
    with tempfile.TemporaryDirectory() as folder:
        trained.fit(
            Data(20, sleep=0.005),
            Data(8, sleep=0.005),
            batch_size=4,
            epochs=3,
            shuffle=False,
            verbose=0,
            save_dir=folder,
            callbacks=callbacks,
            **settings,
        )
    facts = {"losses": spy.losses, "evals": spy.evals, "rates": list(RATES), "digest": digest(trained.network)}
    report(name, scrape(run), **facts, open=[phase.name for phase in run._open_phases])


def main() -> None:
    fit("plain", hooked=False)
    fit("fit")
    fit("workers", num_workers=2)
    fit("accumulate", accumulate_grad_batches=2)
    fit("twice", twice=True)
    fit("iterations", num_iters=7)
    run = start("evaluate")
    model().evaluate(Data(8, sleep=0.005), batch_size=4, verbose=0, callbacks=[Callback()])
    report("evaluate", scrape(run))
    run.finish()
    trained = model()
    trained.fit(Data(20), batch_size=4, epochs=1, verbose=0, callbacks=[Callback(), Spy()])
    import paddle_exporter.run

    run = paddle_exporter.run._current()
    report("started", scrape(run), run=run.name)


if __name__ == "__main__":
    main()
    hand_over()
    sys.exit(0)
