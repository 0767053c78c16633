"""The slots that every page has, and their numbers.

Names are those of the catalogue; one with an underscore is raw material for metrics that collectors/ranks.py derives.
Times are of the monotonic clock, which all processes of a machine share; ``_clock`` turns them into Unix time.
"""

from __future__ import annotations

from . import catalogue
from .catalogue import DROP_REASONS, PHASES, STEP_BUCKETS

NAN = float("nan")
FIRST = 1
"""Slot 0 is nobody's."""

WATCHED = ("loss", "grad_norm")
"""Scalars of training that have a spike detector."""

KNOWN_NONFINITE = (*WATCHED, "learning_rate", "loss_scale", "eval/loss")
"""Scalars whose non-finite values are counted from the start; those of other names from their first use."""

# Known series exist from the start, at 0; what has no value yet is NaN, and absent from a scrape.
ZEROS: list[tuple[str, ...]] = [
    (catalogue.STEPS.name,),  # from here to _last_step: what every step changes, in one store
    (catalogue.SAMPLES.name,),
    (catalogue.TOKENS.name,),
    (catalogue.STEP_DURATION.name, "sum"),
    ("_last_step",),  # 0 before the first
    *((catalogue.STEP_DURATION.name, repr(bound)) for bound in STEP_BUCKETS),
    (catalogue.STEP_DURATION.name, "+Inf"),
    *((catalogue.PHASE_SECONDS.name, phase) for phase in PHASES[:-1]),
    (catalogue.SKIPPED_STEPS.name,),
    (catalogue.CHECKPOINT_SAVES.name,),
    (catalogue.CHECKPOINT_FAILURES.name,),
    (catalogue.CHECKPOINT_SECONDS.name,),
    *((catalogue.DROPPED_SCALARS.name, reason) for reason in DROP_REASONS),
    *((catalogue.SPIKES.name, name) for name in WATCHED),
    *((catalogue.NONFINITE.name, name) for name in KNOWN_NONFINITE),
    ("_start",),
    ("_clock",),
    ("_mark_time",),  # throughput is taken since the mark before the last one
    ("_mark_samples",),
    ("_mark_tokens",),
    ("_older_mark_time",),
    ("_older_mark_samples",),
    ("_older_mark_tokens",),
    ("_counted",),  # the last step's end, moved on by evaluations and checkpoints since then, as the marks are
    ("_step_offset",),  # global step less the steps counted here
]
BLANKS: list[tuple[str, ...]] = [
    ("_end",),
    ("_phase",),  # index in PHASES of the open phase
    ("_phase_since",),  # or when the last one was left
    (catalogue.EPOCH.name,),
    (catalogue.TARGET_STEPS.name,),
    (catalogue.CHECKPOINT_LAST.name,),
    *((catalogue.ZSCORE.name, name) for name in WATCHED),
]

_NUMBERS = {name: FIRST + index for index, name in enumerate(ZEROS + BLANKS)}


def number(name: str, *labels: str) -> int:
    """The number of the slot of metric ``name``, its further label values given in their order."""
    key = (name, *labels)
    return _NUMBERS[key]


STEPS = number(catalogue.STEPS.name)
SAMPLES = number(catalogue.SAMPLES.name)
TOKENS = number(catalogue.TOKENS.name)
BUCKETS = number(catalogue.STEP_DURATION.name, repr(STEP_BUCKETS[0]))
DROPPED = number(catalogue.DROPPED_SCALARS.name, DROP_REASONS[0])
START = number("_start")
CLOCK = number("_clock")
MARK = number("_mark_time")
OLDER_MARK = number("_older_mark_time")
STEP_OFFSET = number("_step_offset")
COUNTED = number("_counted")
END = number("_end")
PHASE = number("_phase")
PHASE_SINCE = number("_phase_since")
