"""The Trainer of PaddleNLP or PaddleFormers, whichever is named, with the callback."""

from __future__ import annotations

import zlib  # noqa: F401  # before Paddle 2.6, whose library brings a zlib of its own that Python's would call

import importlib  # isort: skip
import sys
import tempfile

import paddle
from report import Data, Net, digest, hand_over, report, scrape, start

from paddle_exporter.hooks.trainer import trainer_callback

PACKAGE = sys.argv[1]
trainer = importlib.import_module(f"{PACKAGE}.trainer.trainer")
callbacks = importlib.import_module(f"{PACKAGE}.trainer.trainer_callback")
arguments = importlib.import_module(f"{PACKAGE}.trainer.training_args")
paddle.device.synchronize = lambda *_: None  # PaddleFormers calls it on the CPU, too, where it raises


class Model(paddle.nn.Layer):
    """A model as a Trainer likes it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x, labels=None):
        out = self.net(x)
        return paddle.nn.functional.cross_entropy(out, labels), out


class Samples(Data):
    """The data as dictionaries."""

    def __getitem__(self, index: int):
        x, label = super().__getitem__(index)
        return {"x": x, "labels": label}


class Spy(callbacks.TrainerCallback):
    """What the callbacks were told."""

    def __init__(self) -> None:
        self.rates, self.logs, self.metrics = [], [], []

    def on_optimizer_begin(self, args, state, control, optimizer=None, **_):
        self.rates.append(optimizer.get_lr())

    def on_log(self, args, state, control, logs=None, **_):
        self.logs.append(dict(logs))

    def on_evaluate(self, args, state, control, metrics=None, **_):
        self.metrics.append(dict(metrics))


@paddle.utils.unique_name.guard()  # a resumed optimizer finds its state by names
def train(name: str, *made, resume: bool = False, folder: str) -> None:
    """Ten updates of two batches each, evaluated at 4 and 8, saved at 5 and 10."""
    paddle.seed(3)
    model, spy = Model(), Spy()
    more = {}
    if PACKAGE == "paddleformers":
        more = {"amp_master_grad": False, "save_checkpoint_format": "", "load_checkpoint_format": ""}
    args = arguments.TrainingArguments(
        output_dir=folder,
        max_steps=12 if resume else 10,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.1,
        logging_steps=2,
        save_steps=5,
        evaluation_strategy="steps",
        eval_steps=4,
        max_grad_norm=0.05,
        disable_tqdm=True,
        report_to=[],
        device="cpu",
        **more,
    )
    run = start(name)
    trained = trainer.Trainer(
        model=model,
        args=args,
        train_dataset=Samples(80, sleep=0.003),
        eval_dataset=Samples(8, sleep=0.02),
        compute_metrics=lambda _: {"acc": 0.5},
        callbacks=[spy, *(make() for make in made)],
    )
    trained.train(resume_from_checkpoint=f"{folder}/checkpoint-10" if resume else None)
    facts = {"rates": spy.rates, "logs": spy.logs, "metrics": spy.metrics, "digest": digest(model)}
    report(name, scrape(run), **facts, open=[phase.name for phase in run._open_phases])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as plain:
        train("plain", folder=plain)
    with tempfile.TemporaryDirectory() as hooked:
        train("hooked", lambda: trainer_callback(tokens=1000), folder=hooked)
        train("resumed", trainer_callback, trainer_callback, folder=hooked, resume=True)
    hand_over()
