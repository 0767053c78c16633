"""Reading pages: whole commits or a clear error, whatever the file holds."""

from __future__ import annotations

import os
import random
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddle_exporter import page
from paddle_exporter.collectors.ranks import RankCollector
from paddle_exporter.page import PageError, PageWriter
from paddle_exporter.page_reader import PageReader
from paddle_exporter.recorder import Recorder

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
NOBODY = 65534
FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
REASONS = {"corrupted", "foreign", "truncated", "unreadable", "version"}


@pytest.fixture
def good(page_dir):
    """The bytes of a page of a run with some steps."""
    recorder = Recorder(PageWriter(page_dir / "good.page", {"run": "r", "rank": "0", "world_size": "1"}))
    for i in range(10):
        recorder.step(samples=4, loss=2.0 + i, **{"train/acc": 0.5})
    raw = (page_dir / "good.page").read_bytes()
    recorder._page.detach()
    return raw


@pytest.fixture
def put(page_dir):
    """Write bytes as a page; returns its path."""

    def write(raw):
        path = page_dir / "put.page"
        path.write_bytes(raw)
        path.chmod(0o600)
        return path

    return write


def outcome(path):
    """(values by name, None) of a page that can be read, else (None, reason)."""
    try:
        reader = PageReader(path)
    except PageError as error:
        return None, error.reason
    try:
        return {(name, *labels): value for name, labels, value in reader.read()}, None
    except PageError as error:
        return None, error.reason
    finally:
        reader.close()


def steps(raw_values):
    return raw_values[("paddle_train_steps_total",)]


def test_a_page_is_read(good, put):
    values, _ = outcome(put(good))
    assert steps(values) == 10.0
    assert values[("paddle_train_loss",)] == 11.0
    assert values[("paddle_train_scalar", "train/acc")] == 0.5


def test_a_missing_file_is_unreadable(page_dir):
    assert outcome(page_dir / "none.page") == (None, "unreadable")


def test_a_symlink_is_foreign(good, put, page_dir):
    (page_dir / "link.page").symlink_to(put(good))
    assert outcome(page_dir / "link.page") == (None, "foreign")


def test_a_pipe_is_foreign_and_does_not_hang(page_dir):
    os.mkfifo(page_dir / "pipe.page", 0o600)
    assert outcome(page_dir / "pipe.page") == (None, "foreign")


def test_a_directory_is_foreign(page_dir):
    (page_dir / "dir.page").mkdir()
    assert outcome(page_dir / "dir.page") == (None, "foreign")


@needs_root
def test_a_file_of_another_user_is_foreign(good, put):
    path = put(good)
    os.chown(path, NOBODY, NOBODY)
    assert outcome(path) == (None, "foreign")


@needs_root
def test_an_owner_can_be_named(good, put):
    path = put(good)
    os.chown(path, NOBODY, NOBODY)
    reader = PageReader(path, owner=NOBODY)
    assert reader.read().info["run"] == "r"
    reader.close()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 63, 87, 88, 4095, 4096, 70_000, page.SIZE - 1])
def test_a_truncated_page_is_told(good, put, length):
    assert outcome(put(good[:length])) == (None, "truncated")


@pytest.mark.parametrize("version", [0, 2, 2**63])
def test_another_version_is_told_with_both_numbers(good, put, version):
    path = put(good[:8] + struct.pack("<Q", version) + good[16:])
    with pytest.raises(PageError, match=rf"version {version}\b.*version {page.VERSION}\b") as caught:
        PageReader(path)
    assert caught.value.reason == "version"


def test_an_error_names_the_page(good, put):
    path = put(good[:100])
    with pytest.raises(PageError, match=str(path)):
        PageReader(path)


def test_a_failed_reader_leaves_no_open_file(good, put):
    path = put(good[:100])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(PageError):
            PageReader(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_leaves_no_open_file(good, put):
    reader = PageReader(put(good))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        reader.read()
    assert len(os.listdir("/proc/self/fd")) == before
    reader.close()


def sane(values, good_values):
    """Whether values are those of a whole commit of the page: the steps' number and loss belong together."""
    return set(values) <= set(good_values) and values[("paddle_train_loss",)] == steps(values) + 1.0


@FUZZ
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 12))
def test_flipped_bits_give_an_error_or_a_commit(good, put, seed, flips):
    rng = random.Random(seed)
    raw = bytearray(good)
    for _ in range(flips):
        # Half of the flips hit where something is: the headers, the beginnings of banks and of the journal.
        place = rng.choice([0, 4096, 4096 + 8192, 20480, 36864, 53248, page.JOURNAL_AT])
        at = place + rng.randrange(600) if rng.random() < 0.7 else rng.randrange(len(raw))
        raw[at] ^= 1 << rng.randrange(8)
    good_values, _ = outcome(put(good))
    values, reason = outcome(put(bytes(raw)))
    assert reason in REASONS if values is None else sane(values, good_values)


@FUZZ
@given(length=st.integers(0, page.SIZE - 1))
def test_truncation_anywhere_is_told(good, put, length):
    assert outcome(put(good[:length])) == (None, "truncated")


@FUZZ
@given(raw=st.binary(max_size=2000), size=st.sampled_from([0, 100, page.SIZE, page.SIZE + 1]))
def test_random_contents_are_told(put, raw, size):
    values, reason = outcome(put(raw.ljust(size, raw[-1:] or b"\xff")))
    assert values is None
    assert reason in REASONS


@FUZZ
@given(data=st.data())
def test_random_words_in_the_header_are_an_error_or_a_commit(good, put, data):
    raw = bytearray(good)
    word = data.draw(st.integers(6, 11))
    number = data.draw(st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1), st.sampled_from([2**63, 2**64 - 1])))
    struct.pack_into("<Q", raw, 8 * word, number)
    good_values, _ = outcome(put(good))
    values, reason = outcome(put(bytes(raw)))
    assert reason in REASONS if values is None else sane(values, good_values)


@pytest.mark.parametrize("bit", range(64))
def test_a_flipped_bit_of_the_run_state_is_told(good, put, bit):
    raw = bytearray(good)
    raw[80 + bit // 8] ^= 1 << bit % 8
    assert outcome(put(bytes(raw))) == (None, "corrupted")


def with_journal(good, *bodies):
    """The page with a journal of ``bodies``, each with a right length and checksum."""
    raw = bytearray(good)
    journal = b"".join(struct.pack("<II", len(body), zlib.crc32(body)) + body for body in bodies)
    raw[page.JOURNAL_AT : page.JOURNAL_AT + len(journal)] = journal
    struct.pack_into("<Q", raw, 72, len(journal))
    return bytes(raw)


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"[]",
        b"3",
        b"null",
        b'{"info": 3}',
        b'{"info": [1]}',
        b'{"slots": [[1]]}',
        b'{"first": 0, "slots": 5}',
        b'{"first": "a", "slots": []}',
        b'{"first": 0, "slots": [5]}',
        b'{"first": 0, "slots": [[]]}',
        b'{"first": 0, "slots": [[5, {}], [null]]}',
        b'{"first": 0, "slots": [' + b"[5]," * 500 + b"[6]]}",
        b'{"first": 0, "slots": [' + b'["a", null],' * 500 + b'["a", {}]]}',
        b'{"first": -1, "slots": [["a"], ["b"]]}',
        b'{"first": 1e999, "slots": []}',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"info": {"a": ' + b"9" * 60_000 + b"}}",
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_a_record_that_makes_no_sense_is_an_error(good, put, body):
    path = put(with_journal(good, body))
    reader = PageReader(path)
    with pytest.raises(PageError) as caught:
        reader.read()
    assert caught.value.reason == "corrupted"
    reader.close()


def test_bytes_changing_while_being_read_never_show_a_wild_number(good, put):
    path = put(good)
    rng = random.Random(7)
    good_values, _ = outcome(path)
    reader = PageReader(path)
    seen = set()
    with path.open("r+b", buffering=0) as file:
        for _ in range(300):
            at = rng.choice([64, 72, 80, 4096, 12288, 20480, 36864, 53248, page.JOURNAL_AT]) + rng.randrange(64)
            file.seek(at)
            file.write(bytes([good[at] ^ 1 << rng.randrange(8)]))
            try:
                values = {(name, *labels): value for name, labels, value in reader.read()}
                assert sane(values, good_values)
                seen.add("read")
            except PageError as error:
                seen.add(error.reason)
            file.seek(at)
            file.write(good[at : at + 1])
    reader.close()
    assert seen == {"read", "corrupted"}


def test_a_file_that_shrinks_is_told_and_read_again_when_it_is_back(good, put):
    path = put(good)
    reader = PageReader(path)
    reader.read()
    for length in (page.SIZE - 1, page.JOURNAL_AT + 10, 5000, 70, 0):
        os.truncate(path, length)
        with pytest.raises(PageError) as caught:
            reader.read()
        assert caught.value.reason == "truncated"
    path.write_bytes(good)
    assert reader.read().info["run"] == "r"
    reader.close()


def test_a_replaced_file_is_still_the_old_one_and_gone(good, put, page_dir):
    path = put(good)
    reader = PageReader(path)
    assert not reader.gone()
    (page_dir / "other").write_bytes(b"x" * page.SIZE)
    os.replace(page_dir / "other", path)
    assert reader.read().info["run"] == "r"
    assert reader.gone()
    reader.close()


def test_a_removed_file_can_still_be_read(good, put):
    path = put(good)
    reader = PageReader(path)
    path.unlink()
    assert not reader.read().alive
    reader.close()


def test_a_page_without_a_writer_is_not_alive(good, put):
    reader = PageReader(put(good))
    assert not reader.read().alive
    reader.close()


def test_a_page_with_a_writer_is_alive(page_dir, read):
    writer = PageWriter(page_dir / "a.page", {})
    assert read(writer.path).alive


def test_a_page_of_a_process_that_ended_while_starting_takes_no_other_rank_along(page_dir, scrape):
    young = PageWriter(page_dir / "young.page", {"run": "r", "rank": "0", "world_size": "2"})
    recorder = Recorder(PageWriter(page_dir / "old.page", {"run": "r", "rank": "1", "world_size": "2"}))
    recorder.step(loss=2.0)
    seen = scrape(young.path, recorder._page.path)
    assert seen.total("paddle_train_steps_total") == 1.0


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_pages_with_errors_are_counted_by_reason_and_the_others_served(good, put, reason):
    class Broken:
        def read(self):
            raise PageError(reason, "broken")

    reader = PageReader(put(good))
    families = {family.name: family for family in RankCollector(lambda: [Broken(), reader])()}
    reader.close()
    errors = {s.labels["reason"]: s.value for s in families["paddle_exporter_page_errors"].samples}
    assert errors == {**dict.fromkeys(REASONS, 0.0), reason: 1.0}
    assert families["paddle_train_steps"].samples[0].value == 10.0
