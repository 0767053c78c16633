"""The page: a rank's flight recorder, a small memory-mapped file that outlives its writer.

Layout, version 1, little-endian, fields of 8 bytes::

    0      static header   magic, version, sizes, pid; covered by a checksum; written once
    64     sequence        number of the newest complete bank
    72     journal length  bytes of the journal that are complete
    80     state           code of the run state, repeated in all eight bytes
    4096   banks           4 banks of 16384 bytes
    69632  journal         append-only records (length, CRC-32, JSON): facts about the rank, names of the slots

A bank is a stamp (the sequence number), how many slots are in use, their values (float64), the values again as a
mirror, and the stamp again.

Consistency. ``commit`` copies all values into the bank after the newest one and only then moves ``sequence``: a
reader, and whoever finds the page of a killed process, sees whole commits or nothing. A bank is reused three
commits later, so a reader that saw the sequence move by at most one holds an untouched copy; stamps and mirror
expose whatever else may have hit the bank (another program's write, stores reordered by the CPU).

There is no lock. A bank is written by one call under the GIL, so committers at once (threads, a signal handler)
each write whole banks; where two drew the same number, both hold the same or newer values. An interrupt in the middle
of a commit wastes a number, nothing more.

The writer holds ``flock`` on the file for its life: the kernel drops it however the process ends, and so a reader
knows a dead writer from a live one, in other pid namespaces too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import stat
import struct
import threading
import zlib
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .catalogue import STATES

MAGIC = b"PDLPAGE\0"
VERSION = 1
BANK_BYTES = 16384
CAPACITY = (BANK_BYTES - 24) // 16
"""Slots a page can hold."""

_STATIC = struct.Struct("<8sQQQQQ")  # magic, version, file size, slot capacity, journal capacity, pid
_STATIC_SUM = 6  # the word that holds the CRC-32 of the static header
SEQUENCE, _JOURNAL_LENGTH, _STATE = 8, 9, 10  # in words of 8 bytes
BANKS = 4
BANKS_AT = 4096
BANK_HEAD = struct.Struct("@QQ")  # stamp, slots in use
_VALUE = struct.Struct("@d")
JOURNAL_AT = BANKS_AT + BANKS * BANK_BYTES
JOURNAL_BYTES = 256 * 1024
SIZE = JOURNAL_AT + JOURNAL_BYTES
RECORD = struct.Struct("<II")  # length, CRC-32
EIGHTFOLD = 0x0101010101010101

SUFFIX = ".page"
SIGTERM_SUFFIX = ".sigterm"
"""Of the file beside a page into which a SIGTERM writes the stack of its writer."""


class PageError(Exception):
    """A page cannot be written or read; ``reason`` is a short word for a metric's label."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PageFullError(PageError):
    """No room for another slot or another record."""


def private_directory(path: Path) -> Path:
    """Make ``path`` a directory of our own that nobody else can enter; PageError when it is not ours."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.lstat(path)
    except OSError as error:
        raise PageError("unwritable", f"cannot use directory {path}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise PageError("foreign", f"{path} is not a directory (a symlink is refused)")
    if status.st_uid != os.geteuid():
        raise PageError("foreign", f"{path} belongs to uid {status.st_uid}, not to uid {os.geteuid()}")
    if status.st_mode & 0o077:
        raise PageError(
            "foreign", f"{path} is open to others (mode {status.st_mode & 0o777:04o}); run: chmod 700 {path}"
        )
    return path


class PageWriter:
    """Writes one page. ``values`` is the working copy: store into it by slot, then ``commit``.

    ``path`` is None for a page in anonymous memory, the last resort when no directory can be written.
    """

    def __init__(self, path: Path | None, info: Mapping[str, Any]) -> None:
        self.path = path
        self.working = bytearray(8 * CAPACITY)  # struct copies a bytearray at once
        self.values: memoryview[float] = memoryview(self.working).cast("d")
        self.slots = 0
        self.info: dict[str, Any] = {}
        self._growing = threading.RLock()
        self._journal_length = 0
        self._lock_fd = -1
        self._number = 0
        self._attach(mmap.mmap(-1, SIZE) if path is None else self._create(path))
        static = _STATIC.pack(MAGIC, VERSION, SIZE, CAPACITY, JOURNAL_BYTES, os.getpid())
        self._memory[: len(static)] = static
        self._words[_STATIC_SUM] = zlib.crc32(static)
        self.slot_block([("_none", ())])  # where a slot's number is stored, 0 says that there is none
        self.describe(info)
        self.set_state("starting")
        self.commit()
        if path is not None:
            os.rename(_unfinished(path), path)

    def _create(self, path: Path) -> mmap.mmap:
        """A new file, its blocks reserved: a store into a full tmpfs would be a SIGBUS, not an error."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(_unfinished(path), flags, 0o600)
        except OSError as error:
            raise PageError("unwritable", f"cannot create {path}: {error.strerror}") from error
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, SIZE)
            else:
                os.ftruncate(fd, SIZE)
            mapped = mmap.mmap(fd, SIZE)
            # A second open file for the lock: a forked child keeps the mapping's file open, but closes this one.
            self._lock_fd = os.open(_unfinished(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.unlink(_unfinished(path))
            raise PageError("unwritable", f"cannot reserve {SIZE} bytes for {path}: {error.strerror}") from error
        finally:
            os.close(fd)
        return mapped

    def _attach(self, memory: mmap.mmap | bytearray) -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("Q")

    def _aim(self) -> None:
        """What ``commit`` needs of each bank: where it is, how to write it, and how many slots are in use."""
        used = self.slots
        write = struct.Struct(f"@QQ{8 * used}s{8 * used}sQ").pack_into
        self._banks = tuple((BANKS_AT + bank * BANK_BYTES, write, used) for bank in range(BANKS))

    def slot(self, metric: str, labels: Sequence[str] = (), initial: float = 0.0) -> int:
        """Reserve a slot; ``labels`` are the label values beyond run and rank. PageFullError if none is left."""
        return self.slot_block([(metric, labels)], initial)

    def slot_block(self, names: Sequence[tuple[str, Sequence[str]]], initial: float = 0.0) -> int:
        """Reserve neighbouring slots for ``names``; returns the first one's number. Shown from the next commit on."""
        with self._growing:
            first = self.slots
            end = first + len(names)
            if end == first:
                return first
            if end > CAPACITY:
                raise PageFullError("full", f"the page has room for {CAPACITY} slots")
            self._append({"first": first, "slots": [[metric, *labels] for metric, labels in names]})
            self.values[first:end] = array("d", [initial]) * len(names)
            self.slots = end
            self._aim()
            return first

    def describe(self, info: Mapping[str, Any]) -> None:
        """Add facts about the rank (JSON values); a later one replaces an earlier one of the same name."""
        with self._growing:
            self._append({"info": dict(info)})
            self.info.update(info)

    def _append(self, record: Mapping[str, Any]) -> None:
        body = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
        start = self._journal_length
        end = start + RECORD.size + len(body)
        if end > JOURNAL_BYTES:
            raise PageFullError("full", f"the page has room for {JOURNAL_BYTES} bytes of names")
        self._memory[JOURNAL_AT + start : JOURNAL_AT + end] = RECORD.pack(len(body), zlib.crc32(body)) + body
        self._journal_length = end
        self._words[_JOURNAL_LENGTH] = end

    def set_state(self, state: str) -> None:
        """Store the run state: one store, safe from any thread and from a signal handler."""
        self._words[_STATE] = STATES.index(state) * EIGHTFOLD

    def commit(self) -> None:
        """Publish the working copy. About 0.15 us; never waits."""
        number = self._number = self._number + 1
        at, write, used = self._banks[number & BANKS - 1]
        working = self.working
        write(self._memory, at, number, used, working, working, number)
        if number == self._number:  # else a thread that came later has more to publish
            self._words[SEQUENCE] = number

    def committed(self, slot: int) -> float:
        """The value that ``slot`` had in the newest commit; NaN if it was not in use yet."""
        bank = BANKS_AT + self._number % BANKS * BANK_BYTES
        _, used = BANK_HEAD.unpack_from(self._memory, bank)
        (value,) = _VALUE.unpack_from(self._memory, bank + BANK_HEAD.size + 8 * slot)
        return value if slot < used else float("nan")

    def copy(self, at: int, length: int) -> bytes:
        """``length`` bytes of the page from ``at``: how this process reads its own page, which may have no file."""
        return bytes(self._memory[at : at + length])

    def detach(self) -> None:
        """Leave the page to its owner: a forked child's stores, and those after the end, go to memory of their own."""
        self.path = None
        self._growing = threading.RLock()  # another thread may have held it when the process was forked
        self._attach(bytearray(SIZE))
        if self._lock_fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._lock_fd)
            self._lock_fd = -1


def _unfinished(path: Path) -> Path:
    return path.with_suffix(".new")


def create_page(directories: Sequence[Path], name: str, info: Mapping[str, Any]) -> tuple[PageWriter, list[PageError]]:
    """A page called ``name`` in the first directory that takes one, else in memory; and why the others did not."""
    errors: list[PageError] = []
    for directory in directories:
        try:
            return PageWriter(private_directory(directory) / (name + SUFFIX), info), errors
        except PageError as error:
            errors.append(error)
    return PageWriter(None, info), errors


def default_directories() -> tuple[Path, ...]:
    """Where pages go unless told otherwise: memory first, then the temporary directory."""
    import tempfile

    name = f"paddle-exporter-{os.geteuid()}"
    directories = [Path("/dev/shm") / name]
    with contextlib.suppress(OSError):  # no temporary directory can be written
        directories.append(Path(tempfile.gettempdir()) / name)
    return tuple(directories)
