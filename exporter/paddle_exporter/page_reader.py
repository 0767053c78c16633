"""Reading pages: whole commits or a clear error, whatever the file holds. Layout and guarantees: page.py."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import struct
import time
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from . import page
from .catalogue import STATES
from .page import CAPACITY, SIGTERM_SUFFIX, SIZE, PageError, PageWriter

_HEADER = struct.Struct("<8sQQQQQQ8xQQQ")
_TRIES = 200

Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Snapshot:
    """One commit of a page. ``slots`` are (metric, label values beyond run and rank); ``values`` go with them.

    ``alive``: its writer lives. ``terminated``: its writer got a SIGTERM.
    """

    info: dict[str, Any]
    pid: int
    state: str
    alive: bool
    terminated: bool
    sequence: int
    slots: tuple[tuple[str, ...], ...]
    values: array[float]

    def __iter__(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        for slot, value in zip(self.slots, self.values):
            yield slot[0], slot[1:], value


class PageReader:
    """Reads one page again and again, parsing each name once.

    ``path`` is opened once: refused are symlinks, what is not a regular file, and files of other users than
    ``owner`` (default: our own uid). PageError says what is wrong with a page, in construction and in ``read``.
    """

    def __init__(self, path: Path, owner: int | None = None) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            reason = "foreign" if error.errno == errno.ELOOP else "unreadable"
            raise PageError(reason, f"cannot open page {path}: {error.strerror}") from error
        try:
            status = os.fstat(self._fd)
            wanted = os.geteuid() if owner is None else owner
            if not stat.S_ISREG(status.st_mode) or status.st_uid != wanted:
                raise PageError("foreign", f"page {path} is not a file of uid {wanted}; it is not read")
            self._parser = _Parser(str(path), lambda at, length: os.pread(self._fd, length, at))
            self._parser.static()
        except PageError:
            self.close()
            raise

    def read(self) -> Snapshot:
        """The newest commit. PageError if the page is truncated, corrupted or of another version."""
        return self._parser.snapshot(self._alive, self._terminated)

    def gone(self) -> bool:
        """Whether the file was removed from its directory."""
        return os.fstat(self._fd).st_nlink == 0

    def _alive(self) -> bool:
        return has_writer(f"/proc/self/fd/{self._fd}")

    def _terminated(self) -> bool:
        with contextlib.suppress(OSError):
            return self.path.with_suffix(SIGTERM_SUFFIX).lstat().st_size > 0
        return False

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


def has_writer(path: str | Path) -> bool:
    """Whether the process that writes this page lives: it holds a lock on the file for as long."""
    probe = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(probe)


class OwnPageReader:
    """Reads the page of this very process, which may live in memory only."""

    def __init__(self, writer: PageWriter) -> None:
        self.path = writer.path
        self._parser = _Parser("of this process", writer.copy)

    def read(self) -> Snapshot:
        """The newest commit."""
        return self._parser.snapshot(lambda: True, lambda: False)


class _Parser:
    """Checks and parses what ``read(offset, length)`` returns; keeps the journal it has parsed."""

    def __init__(self, name: str, read: Read) -> None:
        self._name = name
        self._read = read
        self._parsed = 0
        self._info: dict[str, Any] = {}
        self._slots: list[tuple[str, ...]] = []
        self._frozen: tuple[tuple[str, ...], ...] = ()

    def static(self) -> tuple[int, int, int, int]:
        """Check the header; returns pid, sequence, journal length and the state's word."""
        raw = self._read(0, _HEADER.size)
        if len(raw) < _HEADER.size:
            raise self._error("truncated", f"it has {len(raw)} bytes, a page has {SIZE}")
        magic, version, size, capacity, journal, pid, checksum, sequence, length, state = _HEADER.unpack(raw)
        if magic != page.MAGIC:
            raise self._error("foreign", "it does not begin with a page's magic number")
        if version != page.VERSION:
            raise self._error("version", f"its layout is version {version}, this exporter reads version {page.VERSION}")
        if checksum != zlib.crc32(raw[:48]) or (size, capacity, journal) != (SIZE, CAPACITY, page.JOURNAL_BYTES):
            raise self._error("corrupted", "its header does not match its checksum")
        if len(self._read(SIZE - 1, 1)) != 1:
            raise self._error("truncated", f"it is shorter than the {SIZE} bytes of a page")
        return pid, sequence, length, state

    def snapshot(self, alive: Callable[[], bool], terminated: Callable[[], bool]) -> Snapshot:
        """The newest commit; ``alive`` and ``terminated`` tell about its writer."""
        # The probe comes first: a writer that ends in between has then at worst its last words read as alive.
        living = alive()
        for attempt in range(_TRIES):
            pid, sequence, length, state = self.static()
            code = state & 0xFF
            if code >= len(STATES) or state != code * page.EIGHTFOLD:
                raise self._error("corrupted", "its run state is not one")
            self._parse_journal(length)
            values = self._bank(sequence)
            if values is not None:
                slots = self._frozen[: len(values)]
                return Snapshot(self._info, pid, STATES[code], living, terminated(), sequence, slots, values)
            # Not stable yet: the writer lapped us, or its stores are still on their way. Corruption stays.
            time.sleep(0.0001 * (attempt > 20))
        raise self._error("corrupted", "its newest values do not match their mirror")

    def _bank(self, sequence: int) -> array[float] | None:
        raw = self._read(page.BANKS_AT + sequence % page.BANKS * page.BANK_BYTES, page.BANK_BYTES)
        now = int.from_bytes(self._read(page.SEQUENCE * 8, 8), "little")
        if len(raw) != page.BANK_BYTES or not 0 <= now - sequence <= page.BANKS - 3:
            return None
        stamp, used = page.BANK_HEAD.unpack_from(raw)
        if stamp != sequence or not 0 < used <= min(len(self._slots), CAPACITY):
            return None
        begin = page.BANK_HEAD.size
        middle, end = begin + 8 * used, begin + 16 * used
        if raw[begin:middle] != raw[middle:end] or int.from_bytes(raw[end : end + 8], "little") != sequence:
            return None
        return array("d", raw[begin:middle])

    def _parse_journal(self, length: int) -> None:
        if length == self._parsed:
            return
        if not self._parsed < length <= page.JOURNAL_BYTES:
            raise self._error("corrupted", f"its journal claims {length} bytes after {self._parsed}")
        data = self._read(page.JOURNAL_AT + self._parsed, length - self._parsed)
        at = 0
        while at < len(data):
            body = b""
            if at + page.RECORD.size <= len(data):
                size, checksum = page.RECORD.unpack_from(data, at)
                body = data[at + page.RECORD.size : at + page.RECORD.size + size]
            if not body or len(body) != size or zlib.crc32(body) != checksum:
                raise self._error("corrupted", "a record of its journal does not match its checksum")
            try:
                self._apply(json.loads(body))
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise self._error("corrupted", f"a record of its journal makes no sense ({error})") from error
            at += page.RECORD.size + size
        self._parsed = length
        self._frozen = tuple(self._slots)

    def _apply(self, record: dict[str, Any]) -> None:
        if "info" in record:
            self._info = {**self._info, **record["info"]}
        if "slots" in record:
            slots = [tuple(slot) for slot in record["slots"]]
            if not all(slot and all(isinstance(part, str) for part in slot) for slot in slots):
                raise TypeError("a slot's name is not text")
            self._slots[record["first"] :] = slots

    def _error(self, reason: str, what: str) -> PageError:
        return PageError(reason, f"page {self._name} is not usable: {what}")
