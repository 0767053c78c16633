"""Target files for Prometheus's file_sd."""

from __future__ import annotations

import json
import os
import stat
import threading

import pytest

from paddle_exporter.targets import remove_target, target_file, write_target

LABELS = {"run": "r", "rank": "0", "node": "n"}


def write(path, port=9810, host="10.0.0.1", page="/p/a.page"):
    write_target(path, host, port, LABELS, page)
    return json.loads(path.read_text())


def test_the_file_is_what_file_sd_reads(tmp_path):
    ((group,),) = [write(tmp_path / "t.json")]
    assert group["targets"] == ["10.0.0.1:9810"]
    assert {name: value for name, value in group["labels"].items() if not name.startswith("__")} == LABELS
    assert all(isinstance(value, str) for value in group["labels"].values())


def test_an_ipv6_address_is_in_brackets(tmp_path):
    assert write(tmp_path / "t.json", host="fd00::1")[0]["targets"] == ["[fd00::1]:9810"]


def test_directories_are_made(tmp_path):
    assert write(tmp_path / "a" / "b" / "t.json")


def test_other_users_can_read_it_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        write(tmp_path / "t.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "t.json").stat().st_mode) == 0o644


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "t.json"
    write(path)
    stop = threading.Event()
    seen = set()

    def reads():
        while not stop.is_set():
            seen.add(json.loads(path.read_text())[0]["targets"][0])
            assert all(name.name == "t.json" for name in tmp_path.glob("*.json"))

    reader = threading.Thread(target=reads)
    reader.start()
    for port in range(1, 300):
        write(path, port)
    stop.set()
    reader.join()
    assert len(seen) > 1


def test_nothing_else_is_left_in_the_directory(tmp_path):
    for _ in range(3):
        write(tmp_path / "t.json")
    assert os.listdir(tmp_path) == ["t.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write(tmp_path / "t.json", 1)

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "t.json", 2)
    assert os.listdir(tmp_path) == ["t.json"]
    assert json.loads((tmp_path / "t.json").read_text())[0]["targets"] == ["10.0.0.1:1"]


def test_a_directory_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write(tmp_path / "file" / "t.json")


def test_our_file_is_removed(tmp_path):
    write(tmp_path / "t.json", page="/p/a.page")
    remove_target(tmp_path / "t.json", "/p/a.page")
    assert os.listdir(tmp_path) == []


def test_a_successor_s_file_stays(tmp_path):
    write(tmp_path / "t.json", page="/p/b.page")
    remove_target(tmp_path / "t.json", "/p/a.page")
    assert os.listdir(tmp_path) == ["t.json"]


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", "[1]", '[{"labels": 3}]', "null", "\udcff"])
def test_a_file_that_is_not_ours_stays(tmp_path, text):
    (tmp_path / "t.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    remove_target(tmp_path / "t.json", "/p/a.page")
    assert os.listdir(tmp_path) == ["t.json"]


def test_a_missing_file_is_no_error(tmp_path):
    remove_target(tmp_path / "t.json", "/p/a.page")


@pytest.mark.parametrize("run", ["../../etc/x", "a/b", "漢字", "x" * 128, "a b;c$(d)", "..", "\n"])
def test_the_name_of_a_file_is_a_plain_one(run):
    name = target_file(run, 3)
    assert "/" not in name
    assert name.isascii()
    assert name.endswith(".json")
    assert len(name) < 128


def test_runs_of_similar_names_have_files_of_their_own():
    names = {target_file(run, rank) for run in ("a b", "a-b", "a/b", "x" * 70, "x" * 71) for rank in range(3)}
    assert len(names) == 15


def test_a_restarted_rank_has_the_same_file():
    assert target_file("r", 7) == target_file("r", 7)


def test_a_run_tells_its_port_and_removes_the_file(start, page_dir, tmp_path):
    run = start("r", targets_dir=tmp_path / "t")
    (path,) = (tmp_path / "t").glob("*.json")
    (group,) = json.loads(path.read_text())
    assert group["targets"] == [run.url.partition("//")[2].partition("/")[0]]
    assert (group["labels"]["run"], group["labels"]["rank"]) == ("r", "0")
    run.finish()
    assert list((tmp_path / "t").iterdir()) == []


def test_a_run_leaves_its_successor_s_file(start, tmp_path):
    run = start("r", targets_dir=tmp_path / "t")
    (path,) = (tmp_path / "t").glob("*.json")
    write(path, page="/p/successor.page")
    run.finish()
    assert path.exists()


def test_a_run_in_memory_leaves_its_successor_s_file(start, tmp_path, monkeypatch):
    from paddle_exporter import run as run_module

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(run_module, "default_directories", lambda: ())
    run = start("r", page_dir=tmp_path / "file", targets_dir=tmp_path / "t")
    assert run.page is None
    (path,) = (tmp_path / "t").glob("*.json")
    write_target(path, "10.0.0.1", 1, LABELS, str(None))  # of another process without a page
    run.finish()
    assert path.exists()


def test_an_unwritable_directory_is_warned_of_and_harmless(start, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    run = start("r", targets_dir=tmp_path / "file" / "t")
    run.step()
    assert run.url
    assert len([r for r in caplog.records if "target file" in r.getMessage()]) == 1


def test_a_name_that_cannot_be_encoded_is_harmless(start, tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_CURRENT_ENDPOINT", "\udcff:1")
    run = start("r", targets_dir=tmp_path / "t", address="0.0.0.0")
    run.step()
    assert run.url


@pytest.mark.parametrize(
    ("settings", "environment", "host"),
    [
        ({"address": "127.0.0.1"}, {}, "127.0.0.1"),
        ({"advertise": "10.9.8.7"}, {}, "10.9.8.7"),
        ({"address": "0.0.0.0"}, {"PADDLE_CURRENT_ENDPOINT": "10.1.2.3:4567"}, "10.1.2.3"),
        ({"address": "0.0.0.0", "node": "n1"}, {}, "n1"),
    ],
)
def test_the_host_is_one_that_prometheus_reaches(start, tmp_path, settings, environment, host):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        start("r", targets_dir=tmp_path / "t", **settings)
    (path,) = (tmp_path / "t").glob("*.json")
    assert json.loads(path.read_text())[0]["targets"][0].rpartition(":")[0] == host
