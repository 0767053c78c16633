"""Loops written by hand, with ``run.attach``: each function is a job of its own, and reports."""

from __future__ import annotations

import copy
import gc
import io
import sys
import tempfile
import time
import weakref
from pathlib import Path

import paddle
from paddle.nn.utils import clip_grad_norm_
from report import BATCH, Data, Net, attempt, batch, digest, gauge, hand_over, loss_of, norm_of, report, scrape, start

GRAD_NORM = "paddle_train_grad_norm"
LEARNING_RATE = "paddle_train_learning_rate"
SQRT = paddle.sqrt
OPTIMIZERS = {
    "SGD": paddle.optimizer.SGD,
    "Momentum": paddle.optimizer.Momentum,
    "Adam": paddle.optimizer.Adam,
    "AdamW": paddle.optimizer.AdamW,
    "Lamb": paddle.optimizer.Lamb,
}


def train(net, optimizer, steps, run=None, *, scheduler=None, update=None, after=lambda step: None):
    """Train, and return what each update's norm and learning rate were, by our count and by the page."""
    rows = []
    for step in range(steps):
        loss = loss_of(net, step)
        loss.backward()
        row = [norm_of(net.parameters()), optimizer.get_lr()]
        optimizer.step() if update is None else update(loss)
        optimizer.clear_grad()
        if scheduler is not None:
            scheduler.step()
        after(step)
        if run is not None:
            rows.append([*row, gauge(run, GRAD_NORM), gauge(run, LEARNING_RATE)])
    return rows


def clip(norm: float = 0.05):
    return paddle.nn.ClipGradByGlobalNorm(norm)


def optimizers() -> None:
    """Each optimizer, with a scheduler and clipping: weights are the same bits with the hooks and without."""
    for name, kind in OPTIMIZERS.items():
        digests = []
        for hooked in (False, True):
            net = Net()
            scheduler = paddle.optimizer.lr.StepDecay(0.1, step_size=3)
            optimizer = kind(scheduler, parameters=net.parameters(), grad_clip=clip())
            run = start(f"{name}-{hooked}")
            if hooked:
                run.attach(model=net, optimizer=optimizer, samples=BATCH, tokens=BATCH * 4)
            rows = train(net, optimizer, 20, run, scheduler=scheduler)
            digests.append(digest(net))
        report(name, scrape(run), rows=rows, digests=digests)


def minimizes() -> None:
    """``minimize`` in place of ``step``."""
    net = Net()
    optimizer = paddle.optimizer.Adam(0.1, parameters=net.parameters(), grad_clip=clip())
    run = start("minimize").attach(optimizer=optimizer, samples=BATCH)
    rows = train(net, optimizer, 6, run, update=optimizer.minimize)
    report("minimize", scrape(run), rows=rows)


def explicit() -> None:
    """The loop calls ``step`` itself."""
    net = Net()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=net.parameters(), grad_clip=clip())
    run = start("explicit").attach(optimizer=optimizer, samples=99)
    rows = train(net, optimizer, 6, run, after=lambda step: run.step(samples=3, loss=1.0 + step))
    report("explicit", scrape(run), rows=rows)


def accumulates() -> None:
    """Four batches make an update, and the loop calls ``step`` at each batch, or not at all."""
    for name, told in (("accumulate-told", True), ("accumulate", False)):
        net = Net()
        optimizer = paddle.optimizer.AdamW(0.1, parameters=net.parameters())
        run = start(name).attach(optimizer=optimizer, samples=4 * BATCH)
        for step in range(20):
            (loss_of(net, step) / 4).backward()
            if told:
                run.step(samples=BATCH)
            if step % 4 == 3:
                optimizer.step()
                optimizer.clear_grad()
        report(name, scrape(run))


def changes_its_mind() -> None:
    """The loop starts to call ``step`` after some updates."""
    net = Net()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=net.parameters())
    run = start("mind").attach(optimizer=optimizer)
    train(net, optimizer, 4, run)
    train(net, optimizer, 5, run, after=lambda _: run.step())
    report("mind", scrape(run))


def one_update() -> None:
    """A run of one update: counted when the run ends."""
    net = Net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    run = start("one").attach(optimizer=optimizer, samples=BATCH)
    train(net, optimizer, 1, run)
    before = run._count
    run.finish()
    report("one", "", before=before, after=run._count, step_is_ours="step" in vars(optimizer))


def durations() -> None:
    """The first update is counted late and still has its time; an evaluation is no part of a step."""
    net = Net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    run = start("durations").attach(optimizer=optimizer)

    def after(step: int) -> None:
        time.sleep(0.06)
        if step == 0:
            with run.phase("eval"):
                time.sleep(0.3)

    train(net, optimizer, 3, run, after=after)
    report("durations", scrape(run))


def groups() -> None:
    """Parameter groups, each with a clip of its own: the norm is that of all."""
    net = Net()
    groups = [
        {"params": net.hidden.parameters(), "grad_clip": clip(), "learning_rate": 0.5},
        {"params": net.out.parameters(), "grad_clip": clip(0.1)},
    ]
    for name, kind in (("groups-AdamW", paddle.optimizer.AdamW), ("groups-Momentum", paddle.optimizer.Momentum)):
        optimizer = kind(0.1, parameters=[dict(group) for group in groups], grad_clip=clip())
        run = start(name).attach(optimizer=optimizer)
        rows = train(net, optimizer, 5, run)
        report(name, scrape(run), rows=rows)


def clip_function() -> None:
    """``clip_grad_norm_``, imported by name before ``attach``; its other norms are no gradient norm."""
    net = Net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    run = start("function").attach(optimizer=optimizer)

    def update(_loss) -> None:
        clip_grad_norm_(net.parameters(), 0.01)
        optimizer.step()

    rows = train(net, optimizer, 5, run, update=update)

    def other(_loss) -> None:
        clip_grad_norm_(net.parameters(), 0.01, norm_type=float("inf"))
        optimizer.step()

    last = rows[-1][2]
    train(net, optimizer, 2, run, update=other)
    report("function", scrape(run), rows=rows, last=last)


def no_norm() -> None:
    """Clips that know no global norm."""
    for name, grad_clip in (
        ("by-value", paddle.nn.ClipGradByValue(0.1)),
        ("by-norm", paddle.nn.ClipGradByNorm(0.1)),
        ("unclipped", None),
    ):
        net = Net()
        optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters(), grad_clip=grad_clip)
        run = start(name).attach(optimizer=optimizer)
        train(net, optimizer, 3, run)
        report(name, scrape(run))


def late_clip() -> None:
    """The clip is replaced after ``attach``, as fleet and sharding do."""
    net = Net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    run = start("late-clip").attach(optimizer=optimizer)
    train(net, optimizer, 2, run)
    optimizer._grad_clip = clip()
    rows = train(net, optimizer, 3, run)
    report("late-clip", scrape(run), rows=rows, sqrt_is_paddles=paddle.sqrt is SQRT)


def wrappers() -> None:
    """An optimizer around another: one update is one step, whichever of them is attached."""
    for name, outer in (("lookahead-outer", True), ("lookahead-inner", False)):
        net = Net()
        inner = paddle.optimizer.SGD(0.1, parameters=net.parameters(), grad_clip=clip())
        optimizer = paddle.incubate.LookAhead(inner, alpha=0.2, k=2)
        run = start(name).attach(optimizer=optimizer if outer else inner)
        for step in range(5):
            loss_of(net, step).backward()
            optimizer.step()
            inner.clear_grad()
        report(name, scrape(run))


def lbfgs() -> None:
    """An optimizer whose step calls back for losses."""
    net = Net()
    optimizer = paddle.optimizer.LBFGS(0.1, max_iter=3, parameters=net.parameters())
    run = start("lbfgs").attach(optimizer=optimizer)
    for step in range(4):

        def closure(step=step):
            optimizer.clear_grad()
            loss = loss_of(net, step)
            loss.backward()
            return loss

        optimizer.step(closure)
    report("lbfgs", scrape(run))


def attached_again() -> None:
    """Twice, to a second optimizer, and to a second run: nothing is counted twice, the newest is told."""
    net, other = Net(), Net(8)
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters(), grad_clip=clip())
    second = paddle.optimizer.SGD(0.2, parameters=other.parameters())
    run = start("again-1").attach(optimizer=optimizer).attach(optimizer=optimizer)
    train(net, optimizer, 4, run)
    run.attach(optimizer=second)
    train(net, optimizer, 3, run)
    train(other, second, 2, run)
    report("again-1", scrape(run))
    run = start("again-2").attach(optimizer=optimizer)
    train(net, optimizer, 5, run)
    train(other, second, 2, run)
    with tempfile.TemporaryDirectory() as folder:
        paddle.save(net.state_dict(), f"{folder}/net.pdparams")
    loader = paddle.io.DataLoader(Data(4, sleep=0.01), batch_size=2)
    list(loader)
    report("again-2", scrape(run))


def copies() -> None:
    """A deep copy of a watched optimizer (Paddle has them until the first update) steps itself, and is not counted."""
    net = Net()
    optimizer = paddle.optimizer.Momentum(0.1, parameters=net.parameters(), grad_clip=clip())
    run = start("copies").attach(optimizer=optimizer)
    twin = copy.deepcopy(optimizer)
    train(net, optimizer, 3, run)
    before = digest(net)
    for mine, other in zip(net.parameters(), twin._parameter_list):
        other.grad = paddle.ones_like(mine)
    twin.step()
    report("copies", scrape(run), bound_to_twin=twin.step.__self__ is twin, untouched=digest(net) == before)


def forgotten() -> None:
    """A run does not keep an optimizer, and its gigabytes, alive."""
    net = Net()
    optimizer = paddle.optimizer.Adam(0.1, parameters=net.parameters(), grad_clip=clip())
    run = start("forgotten").attach(optimizer=optimizer)
    train(net, optimizer, 3, run)
    gone = weakref.ref(optimizer)
    step = optimizer.step
    del optimizer
    gc.collect()
    kept = gone() is not None
    loss_of(net, 0).backward()
    step()  # a method that somebody kept goes on to work
    del step
    gc.collect()
    report("forgotten", scrape(run), kept=kept, gone=gone() is None)


def somebody_elses() -> None:
    """Somebody wraps ``step`` before us, and somebody after us: both are called, and stay."""
    net = Net()
    calls = []
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())

    def around(name):
        step = optimizer.step

        def wrapper():
            calls.append(name)
            step()

        optimizer.step = wrapper
        return wrapper

    before = around("before")
    run = start("somebody").attach(optimizer=optimizer)
    after = around("after")
    run.attach(optimizer=optimizer)
    train(net, optimizer, 3, run)
    text = scrape(run)
    run.finish()
    train(net, optimizer, 1)
    report("somebody", text, calls=calls, stays=optimizer.step is after, was=before.__name__)


def raises() -> None:
    """An update that raises: the loop gets its error, and no step is counted."""
    net = Net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    run = start("raises").attach(optimizer=optimizer)
    train(net, optimizer, 2, run)
    caught = []
    for loss in ("not a loss", 3):
        try:
            optimizer.minimize(loss)
        except Exception as error:
            caught.append(type(error).__name__)
    train(net, optimizer, 2, run)
    report("raises", scrape(run), caught=caught)


def broken() -> None:
    """What a version of Paddle does not offer, or offers differently, costs only itself."""
    net = Net()

    class Odd:
        """No optimizer of Paddle's."""

        steps = 0

        def step(self) -> None:
            self.steps += 1

        def get_lr(self):
            raise RuntimeError("no rate")

    odd = Odd()
    run = start("broken").attach(model=net, optimizer=odd, scaler=object())
    for _ in range(3):
        odd.step()
    run.attach(optimizer=object())
    report("broken", scrape(run), steps=odd.steps)


def data() -> None:
    """Waits for data, with workers and without, and an evaluation's, which are not told apart from it."""
    for workers in (0, 2):
        net = Net()
        optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
        run = start(f"data-{workers}").attach(optimizer=optimizer)
        hook = paddle.profiler.timer.benchmark().hooks["test"] = Hook()
        loader = paddle.io.DataLoader(Data(8, sleep=0.05), batch_size=2, num_workers=workers)
        seen = 0
        for x, y in loader:
            seen += len(x)
            paddle.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.clear_grad()
        still_open, told = [phase.name for phase in run._open_phases], hook.told
        with run.phase("eval"):
            for _ in paddle.io.DataLoader(Data(4, sleep=0.05), batch_size=2):
                pass
        report(f"data-{workers}", scrape(run), seen=seen, open=still_open, told=told)


class Hook:
    """Somebody else in Paddle's own benchmark."""

    told = 0

    def before_reader(self, _benchmark) -> None:
        self.told += 1

    def after_reader(self, _benchmark) -> None:
        pass


def failing_data() -> None:
    """A dataset that raises: the loop gets the error, and the phase is closed."""
    run = start("failing-data").attach(optimizer=paddle.optimizer.SGD(0.1, parameters=Net().parameters()))

    class Failing(Data):
        def __getitem__(self, index):
            raise KeyError("no such sample")

    caught = ""
    try:
        list(paddle.io.DataLoader(Failing(4), batch_size=2, num_workers=2))
    except Exception as error:
        caught = type(error).__name__
    report("failing-data", scrape(run), caught=caught, open=[phase.name for phase in run._open_phases])


def checkpoints() -> None:
    """Saves with no step between them are one checkpoint; failures count; memory does not."""
    net = Net()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=net.parameters())
    run = start("checkpoints").attach(optimizer=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        for epoch in range(3):
            train(net, optimizer, 4, run)
            paddle.save(net.state_dict(), f"{folder}/{epoch}.pdparams")
            paddle.save(optimizer.state_dict(), path=f"{folder}/{epoch}.pdopt")
        train(net, optimizer, 1, run)
        paddle.distributed.save_state_dict(net.state_dict(), f"{folder}/dist")
        train(net, optimizer, 1, run)
        paddle.save(net.state_dict(), io.BytesIO())
        caught = []
        for path in (f"{folder}/", "/proc/nowhere/net.pdparams"):
            try:
                paddle.save(net.state_dict(), path)
            except Exception as error:
                caught.append(type(error).__name__)
        files = sorted(file.name for file in Path(folder).glob("*.pd*"))
        loaded = paddle.load(f"{folder}/2.pdparams")
    now = time.time()
    report("checkpoints", scrape(run), files=files, caught=caught, now=now, weights=len(loaded))


def threads() -> None:
    """``async_save`` saves in a thread or process of its own."""
    net = Net()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=net.parameters())
    run = start("async").attach(optimizer=optimizer)
    train(net, optimizer, 2, run)
    with tempfile.TemporaryDirectory() as folder:
        paddle.async_save(net.state_dict(), f"{folder}/net.pdparams")
        paddle.clear_async_save_task_queue()
        saved = Path(folder, "net.pdparams").exists()
    report("async", scrape(run), saved=saved)


def compiled() -> None:
    """An update inside a function that ``to_static`` traces: what happens is the same with the hooks."""
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for hooked in (False, True):
            net = Net()
            optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters(), grad_clip=clip())
            run = start(f"compiled-{hooked}")
            if hooked:
                run.attach(optimizer=optimizer)

            def update(x, y, net=net, optimizer=optimizer):
                loss = paddle.nn.functional.cross_entropy(net(x), y)
                loss.backward()
                paddle.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                optimizer.step()
                optimizer.clear_grad()
                paddle.save(net.state_dict(), f"{folder}/net.pdparams")
                return loss

            try:
                function = paddle.jit.to_static(update)
                losses = [function(*batch(step)).item() for step in range(4)]
                outcomes.append([losses, digest(net)])
            except Exception as error:
                outcomes.append([type(error).__name__, digest(net)])
    report("compiled", scrape(run), outcomes=outcomes)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        attempt(globals()[name])
    hand_over()
