"""The hot path: what the training thread calls at every step. Neither paddle nor prometheus_client is imported here.

A call stores numbers into the page's working copy and commits them. Nothing here raises into the training loop,
waits, or does I/O, but for the first use of a new scalar name, which writes that name into the page's journal.
"""

from __future__ import annotations

import logging
import struct
import threading
from bisect import bisect_left
from collections.abc import Collection
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from . import catalogue, slots
from .catalogue import DROP_REASONS, PHASES, STEP_BUCKETS, Metric
from .detect import SpikeDetector
from .page import PageWriter
from .phases import Phase
from .scalars import EVAL, LOG, STEP, Kind, Layout, ScalarTable
from .slots import BUCKETS, MARK, NAN, OLDER_MARK, STEP_OFFSET, STEPS
from .tensors import TensorQueue, is_tensor

log = logging.getLogger("paddle_exporter")

WINDOW = 5.0
"""Seconds between two marks; throughput is taken since the mark before the last one."""

_HOUSEKEEP_SECONDS = 0.25  # detectors' values wait in a list until then, so that a step pays for an append only
_DETECT_AT = 64  # or until so many wait
_STORE_STEP = struct.Struct("@5d").pack_into  # steps, samples, tokens, seconds, now: neighbours, see slots.py
_STEP_AT = 8 * STEPS
_EDGES = (float("-inf"), *STEP_BUCKETS, float("inf"))


class Recorder:
    """Stores what a training loop tells into ``page``. Its methods never raise and are safe from any thread."""

    __slots__ = (  # attributes of a slotted object are the fastest: 0.3 us of a step
        "_bucket",
        "_commit",
        "_count",
        "_detectors",
        "_due",
        "_evals",
        "_high",
        "_last_layout",
        "_last_names",
        "_logs",
        "_low",
        "_next_mark",
        "_open_phases",
        "_page",
        "_phases",
        "_previous",
        "_samples",
        "_seconds",
        "_steps",
        "_table",
        "_tensors",
        "_thread",
        "_tokens",
        "_values",
        "_warned",
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
        self._page = page
        self._values = values = page.values
        self._commit = page.commit
        self._warned: set[str] = set()
        self._table = ScalarTable(page, max_scalars, self._warn)
        self._steps: dict[tuple[str, ...], Layout] = {}
        self._logs: dict[tuple[str, ...], Layout] = {}
        self._evals: dict[tuple[str, ...], Layout] = {}
        self._tensors = TensorQueue(self._number, tensor_every)
        self._detectors = {name: SpikeDetector() for name in slots.WATCHED}
        self._last_names: list[str] = []
        self._last_layout = self._layout(STEP, self._steps, ())
        self._count = self._samples = self._tokens = self._seconds = 0.0
        self._choose_bucket(0.0)
        self._previous = 0.0  # when the last step ended; evaluations and checkpoints move it on
        self._due = 0.0
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

        def step(self, **scalars: Any) -> None:
            """End a training step of ``samples`` samples and ``tokens`` tokens on this rank.

            ``scalars`` are this step's values: loss, learning_rate, grad_norm, loss_scale, and any name of yours
            (``**{"train/acc": acc}``). Numbers, numpy scalars and tensors of one element are taken. ``global_step``
            is the run's own count, where that is not first_step plus the steps recorded here.
            """
            try:
                names = [*scalars]
                if names != self._last_names:
                    self._last_layout = self._layout(STEP, self._steps, tuple(names))
                    self._last_names = names
                self._end_step(self._last_layout, scalars.values())
            except Exception as error:
                self._trouble("step", error)

    def _end_step(self, layout: Layout, numbers: Collection[Any]) -> None:  # noqa: C901, PLR0912
        """The whole of a step. Written out in one place, for each call costs 0.05 us."""
        now = monotonic()
        values = self._values
        # Where the sum is plain and finite, all of the numbers are. A tensor makes it a tensor, a NaN makes it NaN.
        try:
            total = sum(numbers, 0.0) if layout.plain else NAN
        except TypeError:
            total = NAN
        if total.__class__ is float and total - total == 0.0:
            if layout.pack is not None:
                layout.pack(values, layout.offset, *numbers)
            else:
                for slot, number in zip(layout.slots, numbers):
                    values[slot] = number
            for slot, pending in layout.watched:
                pending.append(values[slot])
                if len(pending) >= _DETECT_AT:
                    self._detect()
        else:
            self._put(layout, numbers)
        self._count += 1.0
        if layout.samples:
            self._samples += max(values[layout.samples], 0.0)
        if layout.tokens:
            self._tokens += max(values[layout.tokens], 0.0)
        if self._previous:
            took = now - self._previous
            self._seconds += took
            if not self._low < took <= self._high:
                self._choose_bucket(took)
            values[self._bucket] += 1.0
        self._previous = now
        _STORE_STEP(values, _STEP_AT, self._count, self._samples, self._tokens, self._seconds, now)
        if layout.position:
            values[STEP_OFFSET] = values[layout.position] - self._count
        if now >= self._due:
            self._housekeep(now)
        self._commit()

    def _choose_bucket(self, seconds: float) -> None:
        index = bisect_left(STEP_BUCKETS, seconds)
        self._low, self._high = _EDGES[index], _EDGES[index + 1]
        self._bucket = BUCKETS + index

    def bind(self, *names: str) -> BoundStep:
        """The fastest ``step``: names are resolved now, values are given in their order.

        ``step = run.bind("samples", "loss", "learning_rate")``, then ``step(64, loss, lr)`` ends a step.
        """
        return BoundStep(self, self._layout(STEP, self._steps, names), names)

    # --- now and then -----------------------------------------------------------------------------------------

    def log(self, **scalars: Any) -> None:
        """Store values between steps, as ``step`` does, without counting a step."""
        self._store(LOG, self._logs, scalars)

    def eval(self, **scalars: Any) -> None:
        """Store the result of an evaluation: loss, and any name of yours."""
        self._store(EVAL, self._evals, scalars)

    def epoch(self, number: int) -> None:
        """Say which epoch the run is in now."""
        self._set(catalogue.EPOCH, number)

    def phase(self, name: str) -> Phase:
        """``with run.phase("data"):`` counts the time inside as that phase; an inner phase's time is its own.

        Names: data, forward, backward, optimizer, communication, checkpoint, eval. What is in no phase is "other".
        Time of evaluations and checkpoints is not time of a step.
        """
        phase = self._phases.get(name)
        if phase is None:
            self._warn(f"phase {name}", f"phase {name!r} is not counted; there are: {', '.join(self._phases)}")
            return Phase(None, str(name), 0, 0)
        return phase

    def skipped_step(self) -> None:
        """Count an update that mixed precision skipped."""
        self._values[slots.number(catalogue.SKIPPED_STEPS.name)] += 1.0
        self._commit()

    def checkpoint(self, seconds: float, ok: bool = True) -> None:
        """Count a checkpoint that took ``seconds``, saved or failed; see also ``phase``."""
        values = self._values
        values[slots.number(catalogue.CHECKPOINT_SECONDS.name)] += max(seconds, 0.0)
        values[slots.number((catalogue.CHECKPOINT_SAVES if ok else catalogue.CHECKPOINT_FAILURES).name)] += 1.0
        if ok:
            values[slots.number(catalogue.CHECKPOINT_LAST.name)] = time()
        self._commit()

    def reload(self, global_step: int) -> None:
        """Say that training goes on from another state, at ``global_step``: detectors forget what they learned."""
        for name, detector in self._detectors.items():
            self._table.pending[name].clear()
            detector.reset()
        try:
            self._values[STEP_OFFSET] = global_step - self._count
        except TypeError as error:
            self._trouble("reload", error)
        self._commit()

    # --- values of any type -----------------------------------------------------------------------------------

    def _store(self, kind: Kind, layouts: dict[tuple[str, ...], Layout], scalars: dict[str, Any]) -> None:
        try:
            self._put(self._layout(kind, layouts, tuple(scalars)), scalars.values())
        except Exception as error:
            self._trouble("log", error)
        self._commit()

    def _layout(self, kind: Kind, layouts: dict[tuple[str, ...], Layout], names: tuple[str, ...]) -> Layout:
        return layouts.get(names) or self._table.resolve(kind, layouts, names)

    def _put(self, layout: Layout, numbers: Collection[Any]) -> None:
        """Store ``numbers`` one by one, in the order of their layout."""
        self._tensors.poll()
        for slot in (layout.samples, layout.tokens):
            if slot > 0:
                self._values[slot] = 0.0
        for slot, value in zip(layout.slots, numbers):
            if slot < 0:
                self._values[-slot] += 1.0
            elif value.__class__ is float:
                self._number(slot, value)
            elif is_tensor(value):
                layout.plain = False
                self._tensor(slot, value)
            else:
                self._odd(slot, value)

    def _number(self, slot: int, value: float) -> None:
        if value - value == 0.0:
            self._values[slot] = value
            pending = self._table.watched.get(slot)
            if pending is not None:
                pending.append(value)
            return
        counter = self._table.nonfinite.get(slot)
        if counter is not None:
            self._values[counter] += 1.0
        else:
            self._drop("not_a_number", f"samples, tokens and global_step are finite numbers, not {value}")

    def _tensor(self, slot: int, tensor: Any) -> None:
        reason = self._tensors.take(slot, tensor)
        if reason is not None:
            self._drop(reason, "a tensor has more than one element, or its device is far behind")

    def _odd(self, slot: int, value: Any) -> None:
        """Not a float: another number, a numpy scalar or array of one element, or nothing we can take."""
        if not isinstance(value, (int, float)) and hasattr(value, "dtype") and getattr(value, "size", 1) == 1:
            value = value.item()
        try:
            if isinstance(value, (int, float)):
                self._number(slot, float(value))
                return
        except OverflowError:
            pass
        self._drop("not_a_number", f"a value of type {type(value).__name__} is not a number")

    def _drop(self, reason: str, why: str) -> None:
        self._values[slots.DROPPED + DROP_REASONS.index(reason)] += 1.0
        self._warn(reason, f"a value is not recorded: {why}")

    def _set(self, metric: Metric, value: float) -> None:
        try:
            self._values[slots.number(metric.name)] = value
        except TypeError as error:
            self._trouble(metric.name, error)
        self._commit()

    # --- upkeep -----------------------------------------------------------------------------------------------

    def _housekeep(self, now: float) -> None:
        values = self._values
        self._due = now + _HOUSEKEEP_SECONDS
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

    def _detect(self) -> None:
        for name, pending in self._table.pending.items():
            if pending:
                detector = self._detectors[name]
                self._values[slots.number(catalogue.SPIKES.name, name)] += detector.update(pending)
                self._values[slots.number(catalogue.ZSCORE.name, name)] = detector.z
                pending.clear()

    def _not_a_step(self, seconds: float) -> None:
        """Take the time of an evaluation or a checkpoint out of the step and out of the throughput's window."""
        if self._previous:
            self._previous += seconds
            self._values[MARK] += seconds
            self._values[OLDER_MARK] += seconds

    def _last_words(self) -> None:
        """Take in what still waits, and say when this was."""
        self._tensors.poll()
        self._detect()
        self._values[slots.END] = monotonic()
        self._commit()

    def _trouble(self, where: str, error: Exception) -> None:
        """A call that made no sense: counted, said once, and training goes on."""
        self._drop("not_a_number", f"{where}() failed: {type(error).__name__}: {error}")
        self._commit()

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log.warning("%s (said once; counted in %s)", message, catalogue.DROPPED_SCALARS.name)


class BoundStep:
    """``Recorder.step`` for names that are resolved; made by ``Recorder.bind``."""

    __slots__ = ("_end_step", "_layout", "_recorder", "names")

    def __init__(self, recorder: Recorder, layout: Layout, names: tuple[str, ...]) -> None:
        self.names = names
        self._recorder = recorder
        self._layout = layout
        self._end_step = recorder._end_step

    def __call__(self, *values: Any) -> None:
        """End a step with the values of the bound names, in their order."""
        try:
            if len(values) != len(self.names):
                raise ValueError(f"{len(self.names)} values expected ({', '.join(self.names)}), {len(values)} given")
            self._end_step(self._layout, values)
        except Exception as error:
            self._recorder._trouble("a bound step", error)
