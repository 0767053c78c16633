"""A step written out for one sequence of names, as ``dataclasses`` writes out an ``__init__``.

Ten values that arrive in ``**scalars`` cost 0.45 us before anything is done with them: a dictionary is made, its keys
are compared, its values are looped over. As parameters of their own they cost 0.1 us. The text below becomes a function
that takes finite plain numbers, and leaves every other call to ``_otherwise``.
"""

from __future__ import annotations

from collections.abc import Sequence
from keyword import iskeyword
from struct import Struct
from typing import TYPE_CHECKING, Any, Callable

from .scalars import Layout
from .slots import STEP_OFFSET

if TYPE_CHECKING:
    from .recorder import Recorder

# Where the sum is plain and finite, all of the numbers are: a tensor makes it a tensor, a NaN makes it NaN, and what is
# missing or no number makes it fail. Only an impostor gets past it, and is found out by the store.
# All names here begin with "_", which no parameter's does.
_STEP = """\
def step({parameters}):
    _plain = False
    try:
        if _layout.plain and {complete}:
            {unpack}
            _total = {total}
            _plain = (_total.__class__ is _float or _isinstance(_total, _float)) and _total - _total == 0.0
            if _plain:
                {store}
    except _Exception:
        if _plain:
            _plain = False
            _restore(_layout)
    if _plain:
        {wait}
        {position}
        _end_step({samples}, {tokens})
    else:
        _otherwise({given})
"""


class _Missing:
    """The default of every parameter: nothing a caller would give, and no number."""


def unrolled_step(recorder: Recorder, layout: Layout, names: Sequence[str]) -> Callable[..., None]:
    """``recorder.step`` for calls with ``names``. Other calls are passed on."""
    own = [name for name in names if _is_parameter(name)]
    others = [name for name in names if not _is_parameter(name)]
    variables = {name: f"_{index}" for index, name in enumerate(others)}

    def otherwise(values: tuple[Any, ...], more: dict[str, Any], wrong: tuple[Any, ...]) -> None:
        given = {name: value for name, value in zip(own, values) if value is not _Missing}
        recorder._any_step({**given, **more}, wrong)

    return _compiled(
        recorder,
        layout,
        [variables.get(name, name) for name in names],
        {"_otherwise": otherwise, "_others": others},
        parameters=", ".join(["*_wrong", *(f"{name}=_Missing" for name in own), "**_more"]),
        complete="not _wrong and " + ("[*_more] == _others" if others else "not _more"),
        unpack=f"{_tuple([*variables.values()])} = _more.values()" if others else "",
        given=f"{_tuple(own)}, _more, _wrong",
    )


def unrolled_bound(recorder: Recorder, layout: Layout, names: Sequence[str]) -> Callable[..., None]:
    """A step that takes the values of ``names`` in their order."""
    variables = [f"_{index}" for index in range(len(names))]

    def otherwise(values: tuple[Any, ...], more: tuple[Any, ...]) -> None:
        recorder._any_bound(layout, names, [*(value for value in values if value is not _Missing), *more])

    return _compiled(
        recorder,
        layout,
        variables,
        {"_otherwise": otherwise},
        parameters=", ".join([*(f"{variable}=_Missing" for variable in variables), "*_more"]),
        complete="not _more",
        unpack="",
        given=f"{_tuple(variables)}, _more",
    )


def _compiled(
    recorder: Recorder, layout: Layout, variables: Sequence[str], extra: dict[str, Any], **parts: str
) -> Callable[..., None]:
    """The function of ``_STEP`` whose ``variables`` hold the values for ``layout``'s slots."""
    page = recorder._page
    namespace: dict[str, Any] = {
        "_Exception": Exception,
        "_Missing": _Missing,
        "_end_step": recorder._end_step,
        "_float": float,
        "_isinstance": isinstance,
        "_layout": layout,
        "_recorder": recorder,
        "_restore": recorder._restore,
        "_values": page.values,
        "_working": page.working,
        **extra,
    }
    store, wait = [], []
    for first, run in _neighbours(layout.slots, variables):
        namespace[f"_store_{first}"] = Struct(f"@{len(run)}d").pack_into
        store.append(f"_store_{first}(_working, {8 * first}, {', '.join(run)})")
    for slot, pending in layout.watched:
        namespace[f"_wait_{slot}"] = pending.append
        wait.append(f"_wait_{slot}(_values[{slot}])")
    position = f"_values[{STEP_OFFSET}] = _values[{layout.position}] - _recorder._count - 1.0"
    text = _STEP.format(
        total=" + ".join(["0.0", *variables]),
        store="; ".join(store) or "pass",
        wait="; ".join(wait) or "pass",
        position=position if layout.position else "pass",
        samples=f"_values[{layout.samples}]" if layout.samples else "0.0",
        tokens=f"_values[{layout.tokens}]" if layout.tokens else "0.0",
        **parts,
    )
    exec(compile(text, "<a step of paddle_exporter>", "exec"), namespace)  # noqa: S102  # its names are checked
    step: Callable[..., None] = namespace["step"]
    step.__doc__ = type(recorder).step.__doc__
    return step


def _neighbours(numbers: Sequence[int], variables: Sequence[str]) -> list[tuple[int, list[str]]]:
    """(first slot, variables) of each run of slots that are neighbours."""
    runs: list[tuple[int, list[str]]] = []
    for number, variable in zip(numbers, variables):
        if runs and number == runs[-1][0] + len(runs[-1][1]):
            runs[-1][1].append(variable)
        elif number > 0:
            runs.append((number, [variable]))
    return runs


def _is_parameter(name: str) -> bool:
    return name.isascii() and name.isidentifier() and not iskeyword(name) and not name.startswith("_")


def _tuple(names: Sequence[str]) -> str:
    return "(" + "".join(f"{name}, " for name in names) + ")"
