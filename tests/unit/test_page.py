"""Writing pages: where they are, whose they are, and what does not fit."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from pathlib import Path

import pytest

from paddle_exporter import page
from paddle_exporter.page import PageError, PageFullError, PageWriter, create_page, private_directory

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
NOBODY = 65534


def test_file_is_readable_by_its_owner_only(page_dir):
    PageWriter(page_dir / "a.page", {})
    assert stat.S_IMODE((page_dir / "a.page").stat().st_mode) == 0o600


def test_file_mode_does_not_depend_on_the_umask(page_dir):
    before = os.umask(0)
    try:
        PageWriter(page_dir / "a.page", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((page_dir / "a.page").stat().st_mode) == 0o600


def test_directory_is_made_for_its_owner_only(tmp_path):
    assert stat.S_IMODE(private_directory(tmp_path / "new" / "pages").stat().st_mode) == 0o700


def test_directory_open_to_others_is_refused(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(PageError, match="chmod 700"):
        private_directory(tmp_path / "open")


def test_directory_that_is_a_symlink_is_refused(page_dir, tmp_path):
    (tmp_path / "link").symlink_to(page_dir)
    with pytest.raises(PageError, match="not a directory"):
        private_directory(tmp_path / "link")


def test_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PageError):
        private_directory(tmp_path / "file")


@needs_root
def test_directory_of_another_user_is_refused(page_dir):
    os.chown(page_dir, NOBODY, NOBODY)
    with pytest.raises(PageError, match=str(NOBODY)):
        private_directory(page_dir)


def test_symlink_in_place_of_the_new_page_is_not_followed(page_dir, tmp_path):
    for name in ("a.page", "a.new"):
        (page_dir / name).symlink_to(tmp_path / "victim")
    page_or_error, _ = create_page([page_dir], "a", {})
    assert not (tmp_path / "victim").exists()
    page_or_error.detach()


def test_a_page_appears_whole(page_dir, read, monkeypatch):
    seen = []
    rename = os.rename

    def watching(source, target):
        seen.append(list(page_dir.glob("*.page")))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watching)
    PageWriter(page_dir / "a.page", {"run": "r"})
    assert seen == [[]]
    assert read(page_dir / "a.page").info == {"run": "r"}


def test_first_directory_that_takes_a_page_is_used(page_dir, tmp_path):
    (tmp_path / "file").write_text("")
    writer, errors = create_page([tmp_path / "file", page_dir], "a", {})
    assert writer.path == page_dir / "a.page"
    assert len(errors) == 1


def test_no_directory_takes_a_page_and_it_is_in_memory(tmp_path):
    (tmp_path / "file").write_text("")
    writer, errors = create_page([tmp_path / "file"], "a", {})
    assert writer.path is None
    assert len(errors) == 1


def test_a_failed_page_leaves_no_file(page_dir, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PageError, match="No space left"):
        PageWriter(page_dir / "a.page", {})
    assert list(page_dir.iterdir()) == []


def test_space_is_reserved_at_the_start(page_dir):
    PageWriter(page_dir / "a.page", {})
    assert (page_dir / "a.page").stat().st_blocks * 512 >= page.SIZE


def test_values_are_seen_from_the_commit_on(page_dir, read):
    writer = PageWriter(page_dir / "a.page", {})
    slot = writer.slot("m", ["x"], 7.0)
    writer.commit()
    writer.values[slot] = 8.0
    assert ("m", ("x",), 7.0) in list(read(writer.path))
    writer.commit()
    assert ("m", ("x",), 8.0) in list(read(writer.path))


def test_more_slots_than_a_page_has_are_refused_and_the_others_stay(page_dir, read):
    writer = PageWriter(page_dir / "a.page", {})
    first = writer.slot("m", (), 1.0)
    with pytest.raises(PageFullError):
        writer.slot_block([("n", [str(i)]) for i in range(page.CAPACITY)])
    writer.values[first] = 2.0
    writer.commit()
    assert [value for name, _, value in read(writer.path) if name in "mn"] == [2.0]


def test_every_slot_can_be_used(page_dir, read):
    writer = PageWriter(page_dir / "a.page", {})
    room = page.CAPACITY - writer.slots
    first = writer.slot_block([("m", [str(i)]) for i in range(room)])
    for i in range(room):
        writer.values[first + i] = i
    writer.commit()
    assert [value for name, _, value in read(writer.path) if name == "m"] == list(range(room))


def test_names_that_do_not_fit_are_refused_and_the_page_stays_readable(page_dir, read):
    writer = PageWriter(page_dir / "a.page", {})
    with contextlib.suppress(PageFullError):
        for i in range(1000):
            writer.slot("m", [f"{i:0500d}"])
    writer.commit()
    taken = [labels for name, labels, _ in read(writer.path) if name == "m"]
    assert taken == [(f"{i:0500d}",) for i in range(len(taken))]
    assert 100 < len(taken) < 1000


def test_a_later_fact_replaces_an_earlier_one(page_dir, read):
    writer = PageWriter(page_dir / "a.page", {"paddle": "", "run": "r"})
    writer.describe({"paddle": "3.3.1"})
    assert read(writer.path).info == {"paddle": "3.3.1", "run": "r"}


@pytest.mark.parametrize("text", ["ü漢字😀", 'quote " back\\slash', "\ud800", ""])
def test_facts_of_any_text_are_kept_or_replaced_but_readable(page_dir, read, text):
    writer = PageWriter(page_dir / "a.page", {"fact": text})
    assert read(writer.path).info["fact"] == text.encode("utf-8", "replace").decode()


def test_after_detach_the_file_changes_no_more(page_dir):
    writer = PageWriter(page_dir / "a.page", {})
    path = writer.path
    slot = writer.slot("m")
    writer.commit()
    before = path.read_bytes()
    writer.detach()
    writer.values[slot] = 5.0
    writer.commit()
    writer.set_state("failed")
    writer.slot("n")
    writer.describe({"a": "b"})
    assert path.read_bytes() == before


def test_the_layout_is_the_documented_one(page_dir):
    """The file is read by processes of other versions: its layout changes with VERSION, and not otherwise."""
    writer = PageWriter(page_dir / "a.page", {})
    slot = writer.slot("m")
    writer.values[slot] = 2.5
    writer.commit()
    raw = writer.path.read_bytes()
    magic, version, size = struct.unpack_from("<8sQQ", raw)
    (sequence,) = struct.unpack_from("<Q", raw, 64)
    assert (magic, version, size) == (b"PDLPAGE\0", 1, len(raw))
    assert struct.unpack_from("<d", raw, 4096 + sequence % 4 * 16384 + 16 + 8 * slot) == (2.5,)


@pytest.mark.parametrize("directory", [Path("/proc/pages"), Path("/dev/null/pages")])
def test_impossible_directories_are_page_errors(directory):
    with pytest.raises(PageError):
        private_directory(directory)
