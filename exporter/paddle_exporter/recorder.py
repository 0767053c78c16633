"""The hot path: what the training thread calls at every step. Neither paddle nor prometheus_client is imported here.

A call stores numbers into the page's working copy and commits them. Nothing here raises into the training loop,
waits, or does I/O, but for the first use of a new scalar name, which writes that name into the page's journal.
"""

from __future__ import annotations

import functools
import struct
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any, TypeVar, cast

from . import catalogue, slots
from .catalogue import DROP_REASONS, PHASES, STEP_BUCKETS
from .page import PageWriter
from .phases import Phase
from .scalars import EVAL, LOG, STEP, Layout
from .slots import BUCKETS, MARK, NAN, OLDER_MARK, STEP_OFFSET, STEPS
from .unrolled import unrolled_bound, unrolled_step
from .values import DETECT_AT, ValueStore, as_number

WINDOW = 5.0
"""Seconds between two marks; throughput is taken since the mark before the last one."""

_HOUSEKEEP_SECONDS = 0.25  # detectors' values wait in a list until then, so that a step pays for an append only
_MOST = 1e15  # samples or tokens of one step; more is no amount, and would cost the counter its whole numbers
_STORE_STEP = struct.Struct("@5d").pack_into  # steps, samples, tokens, seconds, now: neighbours, see slots.py
_STEP_AT = 8 * STEPS
_EDGES = (float("-inf"), *STEP_BUCKETS, float("inf"))


def _finite(value: Any) -> float:
    number = as_number(value)
    if number - number != 0.0:
        raise ValueError(f"{number} is not finite")
    return number


_Method = TypeVar("_Method", bound=Callable[..., None])


def _careful(method: _Method) -> _Method:
    """A method that does not raise, however it is called, and commits."""

    @functools.wraps(method)
    def call(self: Recorder, /, *arguments: Any, **scalars: Any) -> None:
        try:
            method(self, *arguments, **scalars)
        except Exception as error:
            self._trouble(method.__name__, error)
        self._commit()

    return cast(_Method, call)


class Recorder(ValueStore):
    """Stores what a training loop tells into ``page``. Its methods never raise.

    They may be called from any thread; steps are counted exactly when one thread at a time ends them.
    """

    __slots__ = (  # attributes of a slotted object are the fastest: 0.3 us of a step
        "__dict__",  # for a step that stands in for the class's, see unrolled.py
        "_at_end",
        "_away",
        "_bucket",
        "_count",
        "_due",
        "_due_count",
        "_high",
        "_last_step",
        "_low",
        "_next_mark",
        "_open_phases",
        "_phases",
        "_previous",
        "_samples",
        "_seconds",
        "_thread",
        "_tokens",
        "_told",
        "_working",
        "_written",
    )

    def __init__(
        self,
        page: PageWriter,
        *,
        target_steps: int | None = None,
        first_step: int = 0,
        max_scalars: int = 200,
        tensor_every: int = 10,
    ) -> None:
        page.slot_block([(name, labels) for name, *labels in slots.ZEROS])
        page.slot_block([(name, labels) for name, *labels in slots.BLANKS], NAN)
        super().__init__(page, max_scalars, tensor_every)
        values = self._values
        self._working = page.working
        self._last_step: tuple[Layout | None, float] = None, 0.0
        self._written: Callable[..., None] | None = None  # the step that stands in for the class's
        self._told: set[str] = set()  # names that steps were given
        self._count = self._samples = self._tokens = self._seconds = 0.0
        self._choose_bucket(0.0)
        self._previous = 0.0  # when the last step ended; evaluations and checkpoints move it on
        self._away = 0.0  # seconds of evaluations and checkpoints
        self._at_end: list[Callable[[], None]] = []  # what hooks still have to tell
        self._due = self._due_count = 0.0
        self._next_mark = 0.0

        now = monotonic()
        values[slots.START] = now
        values[slots.CLOCK] = time() - now
        values[STEP_OFFSET] = first_step
        if target_steps is not None:
            values[slots.number(catalogue.TARGET_STEPS.name)] = target_steps
        self._phases = {
            name: Phase(self, name, index, slots.number(catalogue.PHASE_SECONDS.name, name))
            for index, name in enumerate(PHASES[:-1])
        }
        self._open_phases: list[Phase] = []
        self._thread = threading.get_ident()
        page.commit()

    # --- every step -------------------------------------------------------------------------------------------

    if TYPE_CHECKING:  # what callers see; written that way, matching the names alone would cost a step 0.4 us

        def step(self, *, samples: float = 0, tokens: float = 0, global_step: float = 0, **scalars: Any) -> None:
            """End a training step; see below."""

    else:

        def step(self, /, *wrong: Any, **scalars: Any) -> None:
            """End a training step of ``samples`` samples and ``tokens`` tokens on this rank.

            ``scalars`` are this step's values: loss, learning_rate, grad_norm, loss_scale, and any name of yours
            (``**{"train/acc": acc}``). Numbers, numpy scalars and tensors of one element are taken. ``global_step``
            is the run's own count, where that is not first_step plus the steps recorded here.
            """
            if self._written is not None:  # for a caller that keeps this method from before there was one
                self._written(*wrong, **scalars)
            else:
                self._any_step(scalars, wrong)

    def _any_step(self, scalars: dict[str, Any], wrong: tuple[Any, ...] = ()) -> None:
        """A step of any names and values. Two in a row of the same names, and it is written out for them."""
        try:
            names = tuple(scalars)
            layout = self._layout(STEP, names)
            again = (layout, self._count) == self._last_step
            if wrong:
                self._drop("not_a_number", "step() takes values by name: step(loss=loss)")
            self._store_step(layout, scalars.values())
            self._last_step = layout, self._count
            if not again:
                self._told.update(names)
            elif layout.plain:
                self._write_out(layout, names)
        except Exception as error:
            self._trouble("step", error)

    def _write_out(self, layout: Layout, names: tuple[str, ...]) -> None:
        layout.step = layout.step or unrolled_step(self, layout, names)
        if vars(self).get("step") is self._written:  # else it is a caller's own wrapper
            self.step = layout.step  # type: ignore[method-assign]
        self._written = layout.step

    def _any_bound(self, layout: Layout, names: Sequence[str], numbers: Collection[Any]) -> None:
        try:
            if len(numbers) != len(names):
                raise ValueError(f"{len(names)} values expected ({', '.join(names)}), {len(numbers)} given")
            self._store_step(layout, numbers)
        except Exception as error:
            self._trouble("a bound step", error)

    def _store_step(self, layout: Layout, numbers: Collection[Any]) -> None:
        self._put(layout, numbers)
        values = self._values
        if layout.position and values[layout.position] == values[layout.position]:
            values[STEP_OFFSET] = values[layout.position] - self._count - 1.0
        self._end_step(values[layout.samples], values[layout.tokens])  # slot 0 is always 0

    def _restore(self, layout: Layout) -> None:
        """After a value that passed for a number in the sum, and is none: the store has cleared its slots by then."""
        for slot in layout.slots:
            self._values[slot] = self._page.committed(slot)

    def _end_step(self, samples: float, tokens: float) -> None:
        """What every step ends with, when its values are stored."""
        try:
            now = monotonic()
            values = self._values
            self._count += 1.0
            if 0.0 < samples < _MOST:
                self._samples += samples
            if 0.0 < tokens < _MOST:
                self._tokens += tokens
            if self._previous:
                took = now - self._previous
                self._seconds += took
                if not self._low < took <= self._high:
                    self._choose_bucket(took)
                values[self._bucket] += 1.0
            self._previous = now
            _STORE_STEP(self._working, _STEP_AT, self._count, self._samples, self._tokens, self._seconds, now)
            if now >= self._due or self._count >= self._due_count:
                self._housekeep(now)
            self._page.commit()
        except Exception as error:
            self._trouble("step", error)

    def _choose_bucket(self, seconds: float) -> None:
        index = bisect_left(STEP_BUCKETS, seconds)
        self._low, self._high = _EDGES[index], _EDGES[index + 1]
        self._bucket = BUCKETS + index

    def bind(self, *names: str) -> Callable[..., None]:
        """The fastest ``step``: names are resolved now, values are given in their order.

        ``step = run.bind("samples", "loss", "learning_rate")``, then ``step(64, loss, lr)`` ends a step.
        """
        known = tuple(name if isinstance(name, str) else "" for name in names)
        layout = self._layout(STEP, known)
        self._told.update(known)
        return unrolled_bound(self, layout, known)

    # --- now and then -----------------------------------------------------------------------------------------

    @_careful
    def log(self, /, **scalars: Any) -> None:
        """Store values between steps, as ``step`` does, without counting a step."""
        self._put(self._layout(LOG, tuple(scalars)), scalars.values())

    @_careful
    def eval(self, /, **scalars: Any) -> None:
        """Store the result of an evaluation: loss, and any name of yours."""
        self._put(self._layout(EVAL, tuple(scalars)), scalars.values())

    @_careful
    def epoch(self, number: int) -> None:
        """Say which epoch the run is in now."""
        self._values[slots.number(catalogue.EPOCH.name)] = _finite(number)

    @_careful
    def target(self, steps: int) -> None:
        """Say at which global step the run will be done."""
        self._values[slots.number(catalogue.TARGET_STEPS.name)] = _finite(steps)

    def phase(self, name: str) -> Phase:
        """``with run.phase("data"):`` counts the time inside as that phase; an inner phase's time is its own.

        Names: data, forward, backward, optimizer, communication, checkpoint, eval. What is in no phase is "other".
        Time of evaluations and checkpoints is not time of a step. Only the thread that started the run is timed.
        """
        try:
            return self._phases[name]
        except (KeyError, TypeError):
            self._values[slots.DROPPED + DROP_REASONS.index("invalid_name")] += 1.0
            self._commit()
            self._warn("phase", f"phase {str(name)[:40]!r} is not counted; there are: {', '.join(self._phases)}")
            return Phase(None, "", 0, 0)

    @_careful
    def skipped_step(self) -> None:
        """Count an update that mixed precision skipped."""
        self._values[slots.number(catalogue.SKIPPED_STEPS.name)] += 1.0

    @_careful
    def checkpoint(self, seconds: float, ok: bool = True, *, part: bool = False) -> None:
        """Count a checkpoint that took ``seconds``, saved or failed; see also ``phase``.

        ``part``: it belongs to the checkpoint counted before, as the optimizer's file does to the model's.
        """
        values = self._values
        if not part:
            values[slots.number((catalogue.CHECKPOINT_SAVES if ok else catalogue.CHECKPOINT_FAILURES).name)] += 1.0
        if ok:
            values[slots.number(catalogue.CHECKPOINT_LAST.name)] = time()
        values[slots.number(catalogue.CHECKPOINT_SECONDS.name)] += max(_finite(seconds), 0.0)

    @_careful
    def reload(self, global_step: int) -> None:
        """Say that training goes on from another state, at ``global_step``: detectors forget what they learned."""
        self._values[STEP_OFFSET] = _finite(global_step) - self._count
        for name, detector in self._detectors.items():
            self._table.pending[name].clear()
            detector.reset()

    # --- upkeep -----------------------------------------------------------------------------------------------

    def _housekeep(self, now: float) -> None:
        values = self._values
        self._due = now + _HOUSEKEEP_SECONDS
        self._due_count = self._count + DETECT_AT
        self._tensors.poll()
        self._detect()
        if now < self._next_mark:
            return
        if not self._next_mark:
            self._page.set_state("running")
            self._first_step()
        self._next_mark = now + WINDOW
        values[slots.CLOCK] = time() - monotonic()
        mark = (now, self._samples, self._tokens)
        older = [values[MARK + i] for i in range(3)] if values[MARK] else mark
        for i in range(3):
            values[MARK + i], values[OLDER_MARK + i] = mark[i], older[i]

    def _first_step(self) -> None:
        """Called once, in the first step: for a subclass that has something to find out then."""

    def _not_a_step(self, since: float, now: float) -> None:
        """Take the time of an evaluation or a checkpoint out of the step and out of the throughput's window."""
        seconds = now - max(since, self._previous)  # a step may have ended inside
        self._away += seconds
        if self._previous:
            self._previous += seconds
            self._values[slots.COUNTED] = self._previous
            self._values[MARK] += seconds
            self._values[OLDER_MARK] += seconds

    def _last_words(self) -> None:
        """Take in what still waits, and say when this was."""
        for tell in self._at_end:
            tell()
        self._tensors.poll()
        self._detect()
        self._values[slots.END] = monotonic()
        self._commit()
