"""Every setting: typed, validated, documented. The only reader of os.environ.

A setting is a keyword of ``start()``, or ``PADDLE_EXPORTER_<NAME>`` in the environment, or its default, in this
order. Anything that is not understood stops the start with a SettingError that says what is allowed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple

PREFIX = "PADDLE_EXPORTER_"


class SettingError(ValueError):
    """A setting's name or value is not valid."""


def environ() -> Mapping[str, str]:
    """The environment, for those who need more of it than settings (the launcher's variables)."""
    return os.environ


# --- parsers: text or an object of the right type in, a value out; ValueError says what is allowed -----------


def _text(raw: Any) -> str:
    if not isinstance(raw, (str, Path)) or not str(raw).strip() or len(str(raw)) > 128 or not str(raw).isprintable():
        raise ValueError("text of 1 to 128 printable characters")
    return str(raw).strip()


def _directory(raw: Any) -> Path:
    path = Path(os.path.expanduser(str(raw)))
    if not isinstance(raw, (str, os.PathLike)) or not path.is_absolute() or not str(path).isprintable():
        raise ValueError("an absolute path of a directory")
    return path


def _flag(raw: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    word = str(raw).strip().lower()
    if word not in words:
        raise ValueError("one of " + ", ".join(words))
    return words[word]


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def parse(raw: Any) -> int:
        if isinstance(raw, str) and re.fullmatch(r"\s*-?[0-9]{1,20}\s*", raw):
            raw = int(raw)
        if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return raw

    return parse


def _seconds(low: float, high: float) -> Callable[[Any], float]:
    def parse(raw: Any) -> float:
        try:
            value = float(raw)
        except (TypeError, ValueError, OverflowError):
            value = float("nan")
        if isinstance(raw, bool) or not low <= value <= high:
            raise ValueError(f"seconds from {low:g} to {high:g}")
        return value

    return parse


_TAG = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,63}")


def _tags(raw: Any) -> dict[str, str]:
    allowed = "name=value pairs, at most 20; a name is letters, digits and _, a value at most 128 printable characters"
    if isinstance(raw, str):
        pairs = [part.partition("=") for part in raw.split(",") if part.strip()]
        if any(not equals for _, equals, _ in pairs):
            raise ValueError(allowed)
        raw = {name.strip(): value.strip() for name, _, value in pairs}
    if not isinstance(raw, Mapping) or len(raw) > 20:
        raise ValueError(allowed)
    tags = {str(name): str(value) for name, value in raw.items()}
    for name, value in tags.items():
        if not _TAG.fullmatch(name) or len(value) > 128 or not value.isprintable():
            raise ValueError(allowed)
    return tags


_ADDRESS = re.compile(
    r"[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(%[0-9A-Za-z]+)?|(?=.{1,253}$)[0-9A-Za-z-]{1,63}(\.[0-9A-Za-z-]{1,63})*"
)


def _address(raw: Any) -> str:
    if not isinstance(raw, str) or not _ADDRESS.fullmatch(raw):
        raise ValueError("an IP address or host name of this machine, such as 0.0.0.0, :: or 127.0.0.1")
    return raw


# --- the settings ---------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """One setting: its parser, its default as shown to people, and what it is for."""

    parse: Callable[[Any], Any]
    default: Any
    help: str


_SETTINGS: dict[str, Setting] = {
    "enabled": Setting(_flag, True, "`0` turns the exporter into a recorder that records nothing"),
    "run": Setting(_text, None, "name of the run; by default the script's name and a hash all ranks of a launch share"),
    "tags": Setting(
        _tags, None, "facts of yours for `paddle_run_info`: `team=nlp,data=v3`, shown as `tag_team`, `tag_data`"
    ),
    "seed": Setting(_whole(-(2**63), 2**63), None, "random seed, for `paddle_run_info`"),
    "commit": Setting(_text, None, "version of your code; by default the commit of the script's Git checkout"),
    "node": Setting(_text, None, "name of this machine; by default its host name"),
    "target_steps": Setting(_whole(1, 10**15), None, "global step at which the run is done"),
    "first_step": Setting(_whole(0, 10**15), 0, "global step a resumed run starts from"),
    "serve": Setting(_flag, True, "`0`: no thread and no port in the training process; the page is still written"),
    "address": Setting(_address, "0.0.0.0", "address to listen on"),
    "port": Setting(
        _whole(0, 65535), 9810, "port of local rank 0; rank n takes the n-th after it; 0 takes any free one"
    ),
    "port_tries": Setting(_whole(1, 1024), 32, "how many ports to try, the next after a taken one"),
    "page_dir": Setting(
        _directory,
        None,
        "directory of the pages; by default `/dev/shm/paddle-exporter-<uid>`, else the temporary directory",
    ),
    "page_retention": Setting(_seconds(0, 31_536_000), 86_400.0, "seconds to keep the page of a process that ended"),
    "targets_dir": Setting(
        _directory, None, "directory for Prometheus's file_sd target files; by default `targets` in the page directory"
    ),
    "advertise": Setting(
        _address,
        None,
        "host written into target files; by default the address, or the node's IP when that is a wildcard",
    ),
    "linger": Setting(
        _seconds(0, 300),
        20.0,
        "longest wait at the end for one more scrape, so that the end is seen; only if a Prometheus scrapes",
    ),
    "max_scalars": Setting(_whole(0, 400), 200, "how many scalar names of yours are taken"),
    "tensor_every": Setting(
        _whole(1, 10**6), 10, "read GPU tensors every N-th time where they cannot be read without waiting"
    ),
}


class Settings(NamedTuple):
    """Checked values. What each means: ``describe()``, and the table in the README."""

    enabled: bool
    run: str | None
    tags: Mapping[str, str] | None
    seed: int | None
    commit: str | None
    node: str | None
    target_steps: int | None
    first_step: int
    serve: bool
    address: str
    port: int
    port_tries: int
    page_dir: Path | None
    page_retention: float
    targets_dir: Path | None
    advertise: str | None
    linger: float
    max_scalars: int
    tensor_every: int


def load(keywords: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from ``keywords`` (None means not given), then ``environment`` (default: the process's), then defaults.

    SettingError names the setting, the value and what is allowed; an unknown name gets the nearest valid one.
    """
    environment = environ() if environment is None else environment
    given = {name: value for name, value in (keywords or {}).items() if value is not None}
    for name in given:
        if name not in _SETTINGS:
            raise SettingError(f"start() has no setting {name!r}.{_nearest(name, _SETTINGS)}")
    variables = [PREFIX + name.upper() for name in _SETTINGS]
    for variable in environment:
        if variable.startswith(PREFIX) and variable not in variables:
            nearest = _nearest(variable.upper(), variables)
            raise SettingError(f"{variable} in the environment is not a setting.{nearest}")
    values = {}
    for name, setting in _SETTINGS.items():
        source, raw = name, given.get(name)
        if raw is None:
            source, raw = PREFIX + name.upper(), environment.get(PREFIX + name.upper())
            if raw is not None and not raw.strip():
                raw = None  # an empty variable is how compose files and shells say "not set"
        try:
            values[name] = setting.default if raw is None else setting.parse(raw)
        except ValueError as error:
            raise SettingError(f"{source}={raw!r} is not valid; allowed: {error}") from None
    return Settings(**values)


def _nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    import difflib  # 5 ms that only an error needs

    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]}?" if match else f" There are: {', '.join(known)}."


def describe() -> tuple[tuple[str, str, str], ...]:
    """(name, default, help) of every setting, for the reference."""
    return tuple(
        (name, "" if setting.default is None else str(setting.default), setting.help)
        for name, setting in _SETTINGS.items()
    )


assert list(Settings._fields) == list(_SETTINGS)
