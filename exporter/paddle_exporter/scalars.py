"""Names of scalars, resolved to slots of the page once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Callable

from . import catalogue, slots
from .catalogue import DROP_REASONS, Metric
from .page import PageFullError, PageWriter

NAME_LENGTH = 128
NAME_BYTES = 256  # in UTF-8; 400 names of that length fit into a page's journal, with room for the known ones
_LAYOUTS_KEPT = 1000  # a loop that makes up new combinations of names for ever must not fill the memory


class Kind:
    """What names mean in one kind of call: some a metric of their own, any other a label's value of ``other``."""

    def __init__(self, known: Mapping[str, Metric], other: Metric, prefix: str, special: tuple[str, ...]) -> None:
        self.known = known
        self.other = other
        self.prefix = prefix  # of the label of the counter of non-finite values
        self.special = special  # names of what the step itself is told; their slots are not metrics


_TRAIN = {
    "loss": catalogue.LOSS,
    "learning_rate": catalogue.LEARNING_RATE,
    "grad_norm": catalogue.GRAD_NORM,
    "loss_scale": catalogue.LOSS_SCALE,
}
STEP = Kind(_TRAIN, catalogue.SCALAR, "", ("samples", "tokens", "global_step"))
LOG = Kind(_TRAIN, catalogue.SCALAR, "", ())
EVAL = Kind({"loss": catalogue.EVAL_LOSS}, catalogue.EVAL_SCALAR, "eval/", ())


Watched = dict[int, list[float]]
"""Slot of a scalar -> its values that wait for the scalar's detector."""


class Layout:
    """The slots of one sequence of names; a negative number stands for the slot that counts what is dropped.

    ``plain`` is whether numbers may be stored without a look at each: no once a tensor was seen among them.
    """

    __slots__ = ("own", "plain", "position", "samples", "slots", "step", "tokens", "watched")

    def __init__(self, numbers: list[int], names: tuple[str, ...], special: tuple[str, ...], watched: Watched) -> None:
        self.slots = numbers
        given = {name: slot for name, slot in zip(names, numbers) if name in special and slot > 0}
        self.samples = given.get("samples", 0)  # the slot of a special value, 0 where it is not among the names
        self.tokens = given.get("tokens", 0)
        self.position = given.get("global_step", 0)
        self.own = list(given.values())
        self.watched = [(slot, watched[slot]) for slot in numbers if slot in watched]
        self.plain = all(number >= slots.FIRST for number in numbers)
        self.step: Callable[..., None] | None = None  # the step written out for these names, once it is


class ScalarTable:
    """Reserves slots for names at their first use, in ``page``.

    ``warn(reason, message)`` is told of names that are refused.
    """

    def __init__(self, page: PageWriter, max_scalars: int, warn: Callable[[str, str], None]) -> None:
        self.watched: Watched = {}
        self.nonfinite: dict[int, int] = {}  # slot -> slot of its counter of non-finite values
        self.pending: dict[str, list[float]] = {name: [] for name in slots.WATCHED}
        self.layouts: dict[Kind, dict[tuple[str, ...], Layout]] = {STEP: {}, LOG: {}, EVAL: {}}
        self._counters = {name: slots.number(catalogue.NONFINITE.name, name) for name in slots.KNOWN_NONFINITE}
        self._page = page
        self._max_scalars = max_scalars
        self._warn = warn
        self._slots: dict[tuple[str, str], int] = {}  # (metric, name) -> slot
        self._users = 0
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self._lock = threading.Lock()

    def resolve(self, kind: Kind, names: tuple[str, ...]) -> Layout:
        """The layout of ``names``, made and kept in ``layouts``."""
        with self._lock:
            self._reserve(kind, names)
            numbers = [self._slots.get(self._key(kind, name), 0) or self._refuse(name) for name in names]
        layout = Layout(numbers, names, kind.special, self.watched)
        layouts = self.layouts[kind]
        if len(layouts) < _LAYOUTS_KEPT:
            layouts[names] = layout
        return layout

    def _key(self, kind: Kind, name: str) -> tuple[str, str]:
        if name in kind.special:
            return (f"_step_{name}", "")
        metric = kind.known.get(name)
        return (metric.name, "") if metric else (kind.other.name, name)

    def _reserve(self, kind: Kind, names: tuple[str, ...]) -> None:
        """New names get neighbouring slots, and after them their counters of non-finite values."""
        new: list[tuple[str, str]] = []
        for name in dict.fromkeys(names):
            key = self._key(kind, name) if _valid(name) else None
            if key is None or key in self._slots:
                continue
            if key[1] and self._users >= self._max_scalars:
                continue
            self._users += bool(key[1])
            new.append(key)
        labels = {key: kind.prefix + (key[1] or _known_name(kind, key[0])) for key in new if key[0][0] != "_"}
        fresh = list(dict.fromkeys(label for label in labels.values() if label not in self._counters))
        try:
            # One record, so that a page that is full takes all of it or nothing.
            first = self._page.slot_block(
                [(metric, [name] if name else []) for metric, name in new]
                + [(catalogue.NONFINITE.name, [label]) for label in fresh],
                slots.NAN,
            )
        except PageFullError:
            self._users -= sum(bool(key[1]) for key in new)
            return
        for counter, label in enumerate(fresh, first + len(new)):
            self._page.values[counter] = 0.0
            self._counters[label] = counter
        for slot, key in enumerate(new, first):
            self._slots[key] = slot
            if key in labels:
                self.nonfinite[slot] = self._counters[labels[key]]
                if labels[key] in self.pending:
                    self.watched[slot] = self.pending[labels[key]]

    def _refuse(self, name: str) -> int:
        if not _valid(name):
            reason, why = (
                "invalid_name",
                f"a name has 1 to {NAME_LENGTH} printable characters in {NAME_BYTES} bytes",
            )
        else:
            reason, why = "too_many", f"{self._users} names are taken (setting max_scalars={self._max_scalars})"
        self._warn(reason, f"scalar {str(name)[:NAME_LENGTH]!r} is not recorded: {why}")
        return -(slots.DROPPED + DROP_REASONS.index(reason))


def _valid(name: Any) -> bool:
    return (
        isinstance(name, str)
        and 0 < len(name) <= NAME_LENGTH
        and name.isprintable()
        and len(name.encode("utf-8", "replace")) <= NAME_BYTES
    )


def _known_name(kind: Kind, metric: str) -> str:
    return next(name for name, known in kind.known.items() if known.name == metric)
