"""The demo's training job: a small CNN learns handwritten digits, data-parallel, and tells paddle_exporter about it.

It is an ordinary Paddle script. What it needs of the exporter are the lines with ``run.``; the demo starts it as

    PADDLE_EXPORTER_RUN=digits python -m paddle.distributed.launch --nproc_per_node 2 train.py

and it runs as well without the demo: curl 127.0.0.1:9810/metrics shows rank 0, :9811 rank 1.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
import zlib  # noqa: F401 - Paddle 2.6 brings a zlib of its own, which crashes Python's if it is loaded first
from pathlib import Path
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import nn
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients
from paddle.io import DataLoader, DistributedBatchSampler, TensorDataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import paddle_exporter
from paddle_exporter.demo.faults import KINDS, Fault

SEED = 7
EPOCHS = 72
BATCH = 32  # images a step and rank
CHECKPOINT_EPOCHS = 12
LONGEST = 80.0  # seconds; on a very slow machine the run ends early


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,797 scanned digits of 8x8 pixels: four fifths to train on, one fifth to test on; the same in every rank."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).reshape(-1, 1, 8, 8).astype("float32")
    parts = train_test_split(images, labels, test_size=0.2, random_state=SEED, stratify=labels)
    train_images, test_images, train_labels, test_labels = map(paddle.to_tensor, parts)
    return TensorDataset([train_images, train_labels]), TensorDataset([test_images, test_labels])


def shard(data: TensorDataset, *, shuffle: bool) -> DataLoader:
    """Batches of this rank's share of ``data``."""
    return DataLoader(data, batch_sampler=DistributedBatchSampler(data, BATCH, shuffle=shuffle))


def network() -> nn.Layer:
    """Three convolutions and a classifier. On a CPU, ReLU and maximum pooling would make a 0 of a NaN, and hide it."""
    return nn.Sequential(
        nn.Conv2D(1, 24, 3, padding=1),
        nn.GELU(),
        nn.Conv2D(24, 32, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2D(2),
        nn.Conv2D(32, 48, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(48 * 4 * 4, 10),
    )


def learn(
    run: paddle_exporter.Run, model: nn.Layer, optimizer: Any, images: Any, labels: Any
) -> tuple[Any, Any, float]:
    """Update the weights; returns loss and accuracy of this rank's batch, and the norm of all ranks' gradient."""
    with model.no_sync():  # see "communication"
        with run.phase("forward"):
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            accuracy = (logits.argmax(1) == labels).astype("float32").mean()
        with run.phase("backward"):
            loss.backward()
    # DataParallel would do this within backward(), where the death of a peer aborts the process in C++. Here it raises,
    # and the run ends as "failed", with the exception's name.
    with run.phase("communication"):
        if dist.get_world_size() > 1:
            fused_allreduce_gradients(list(model.parameters()), None)
    with run.phase("optimizer"):
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), 5.0).item()
        if math.isfinite(grad_norm):
            optimizer.step()
        else:  # the gradient is everybody's by now, so all ranks skip the update: the weights stay sound
            run.skipped_step()
        optimizer.clear_grad()
    return loss, accuracy, grad_norm


def evaluate(model: nn.Layer, batches: DataLoader, *, late: bool) -> tuple[float, float, bool]:
    """Loss and accuracy on the test images of all ranks, and whether any rank is ``late``: the same in every rank."""
    model.eval()
    loss = correct = count = 0.0
    with paddle.no_grad():
        for images, labels in batches:
            logits = model(images)
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(1) == labels).sum().item()
            count += len(images)
    model.train()
    totals = paddle.to_tensor([loss, correct, count, float(late)])
    if dist.get_world_size() > 1:
        dist.all_reduce(totals)
    loss, correct, count, lates = totals.tolist()
    return loss / count, correct / count, lates > 0.0


def save(model: nn.Layer, optimizer: Any, epoch: int, directory: Path) -> None:
    """Write a checkpoint; a reader never sees half of one."""
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / "unfinished"
    paddle.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, str(unfinished))
    os.replace(unfinished, directory / "digits.pdckpt")


def train(arguments: argparse.Namespace) -> None:
    """Train for EPOCHS epochs."""
    dist.init_parallel_env()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    paddle.seed(SEED + rank)
    train_data, test_data = digits()
    train_batches, test_batches = shard(train_data, shuffle=True), shard(test_data, shuffle=False)
    target_steps = EPOCHS * len(train_batches)
    fault = Fault(arguments.fault if rank == world_size - 1 else None, rank, target_steps // 3, arguments.fault_file)

    model = paddle.DataParallel(network())  # every rank starts with rank 0's weights
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(1e-3, T_max=target_steps)
    optimizer = paddle.optimizer.AdamW(schedule, parameters=model.parameters(), weight_decay=0.01)

    with paddle_exporter.start(target_steps=target_steps, seed=SEED) as run:
        began, step = time.monotonic(), 0
        for epoch in range(EPOCHS):
            run.epoch(epoch)
            train_batches.batch_sampler.set_epoch(epoch)  # another order
            batches = iter(train_batches)
            while True:
                with run.phase("data"):
                    batch = next(batches, None)
                    if batch is None:
                        break
                    images, labels = fault.strike(step, batch[0]), batch[1]

                loss, accuracy, grad_norm = learn(run, model, optimizer, images, labels)
                run.step(
                    samples=len(images),
                    loss=loss,
                    learning_rate=optimizer.get_lr(),
                    grad_norm=grad_norm,
                    **{"train/acc": accuracy},
                )
                schedule.step()
                step += 1

            with run.phase("eval"):
                late = time.monotonic() - began > LONGEST
                test_loss, test_accuracy, late = evaluate(model, test_batches, late=late)
                run.eval(loss=test_loss, acc=test_accuracy)
            if rank == 0 and (epoch + 1) % CHECKPOINT_EPOCHS == 0:
                saving = time.monotonic()
                with run.phase("checkpoint"):
                    save(model, optimizer, epoch, arguments.checkpoints)
                run.checkpoint(time.monotonic() - saving)
            print(f"epoch {epoch}: test loss {test_loss:.4f}, accuracy {test_accuracy:.2%}", flush=True)
            if late:
                break


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train a small CNN on handwritten digits.")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="where checkpoints go")
    parser.add_argument("--fault", choices=KINDS, help="what goes wrong, in the last rank, after a third of the run")
    parser.add_argument("--fault-file", type=Path, help="is told when, in which rank and at which step it did")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
