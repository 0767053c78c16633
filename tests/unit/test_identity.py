"""Who am I: from the launcher's variables, and without a launcher."""

from __future__ import annotations

import platform
import socket

import pytest

from paddle_exporter import __version__
from paddle_exporter.identity import identify
from paddle_exporter.settings import load

ENDPOINTS = "10.0.0.1:41001,10.0.0.1:41002,10.0.0.2:52001,10.0.0.2:52002"


def launched(rank, world=4, local=2):
    """The environment that Paddle's launcher gives to a rank."""
    return {
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_GLOBAL_RANK": str(rank),
        "PADDLE_TRAINERS_NUM": str(world),
        "PADDLE_GLOBAL_SIZE": str(world),
        "PADDLE_LOCAL_RANK": str(rank % local),
        "PADDLE_RANK_IN_NODE": str(rank % local),
        "PADDLE_LOCAL_SIZE": str(local),
        "PADDLE_NNODES": str(world // local),
        "PADDLE_TRAINER_ENDPOINTS": ENDPOINTS,
        "PADDLE_CURRENT_ENDPOINT": ENDPOINTS.split(",")[rank],
        "PADDLE_MASTER": "10.0.0.1:41000",
        "POD_NAME": f"pod{rank // local}",
    }


def who(environment=None, script="/job/train.py", **settings):
    return identify(load(settings, {}), environment or {}, script)


def test_a_rank_of_a_launch():
    identity = who(launched(3))
    assert (identity.rank, identity.local_rank, identity.world_size, identity.local_size) == (3, 1, 4, 2)


def test_a_process_without_a_launcher_is_rank_0_of_1():
    identity = who()
    assert (identity.rank, identity.local_rank, identity.world_size, identity.local_size) == (0, 0, 1, 1)
    assert identity.node == socket.gethostname()


@pytest.mark.parametrize("junk", ["", "x", "-1", "1.5", " ", "1e3", "9" * 30])
def test_variables_that_are_no_numbers_are_as_if_not_there(junk):
    names = ("PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM", "PADDLE_LOCAL_RANK", "PADDLE_LOCAL_SIZE")
    identity = who(dict.fromkeys(names, junk))
    assert (identity.rank, identity.local_rank, identity.world_size, identity.local_size) == (0, 0, 1, 1)


def test_the_name_is_the_same_in_all_ranks_and_on_all_nodes(monkeypatch):
    names = set()
    for rank in range(4):
        monkeypatch.setattr(socket, "gethostname", lambda rank=rank: f"node{rank // 2}")
        names.add(who(launched(rank), script=f"/home/user{rank // 2}/train.py").run)
    assert len(names) == 1


def test_the_name_tells_the_script():
    assert who(launched(0)).run.startswith("train-")
    assert who().run.startswith("train-")


def test_another_launch_of_the_same_script_has_another_name():
    again = {**launched(0), "PADDLE_TRAINER_ENDPOINTS": ENDPOINTS.replace("41001", "41009")}
    assert who(launched(0)).run != who(again).run


def test_another_process_without_a_launcher_has_another_name():
    assert who().run != who().run


def test_a_name_that_is_set_is_taken():
    assert who(launched(2), run="exp 42").run == "exp 42"


@pytest.mark.parametrize(
    "script", ["", "-c", "-", "/a/...", "/a/漢字.py", "/a/" + "x" * 300 + ".py", "/a/b c;$(d).py", "/a/\udcff.py"]
)
def test_any_script_gives_a_plain_name(script):
    name = who(script=script).run
    assert name
    assert len(name) <= 128
    assert name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    assert name.isascii()


def test_facts_are_labels_of_the_info():
    info = who(launched(1), commit="abc", seed=7, tags={"team": "nlp"}, node="n1").info()
    assert info["run"].startswith("train-")
    assert {name: info[name] for name in ("rank", "local_rank", "world_size", "node")} == {
        "rank": "1",
        "local_rank": "1",
        "world_size": "4",
        "node": "n1",
    }
    assert (info["commit"], info["seed"], info["tag_team"]) == ("abc", "7", "nlp")
    assert (info["python"], info["exporter"]) == (platform.python_version(), __version__)


def test_a_seed_of_0_is_told():
    assert who(seed=0).info()["seed"] == "0"


def test_tags_cannot_take_the_place_of_facts():
    info = who(tags={"run": "x", "rank": "9", "python": "1"}).info()
    assert (info["rank"], info["python"]) == ("0", platform.python_version())
    assert info["tag_rank"] == "9"


# --- the commit -------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def checkout(tmp_path):
    git = tmp_path / "job" / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs" / "heads" / "main").write_text(COMMIT + "\n")
    return tmp_path / "job"


def commit(script):
    return who(script=str(script)).info()["commit"]


def test_the_commit_is_that_of_the_script_s_checkout(checkout):
    assert commit(checkout / "train.py") == COMMIT


def test_the_commit_is_found_from_a_folder_of_the_checkout(checkout):
    (checkout / "a" / "b").mkdir(parents=True)
    assert commit(checkout / "a" / "b" / "train.py") == COMMIT


def test_the_commit_of_a_relative_script(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    assert commit("train.py") == COMMIT


@pytest.mark.parametrize("script", ["", "-c", "-m"])
def test_the_commit_of_code_without_a_file_is_that_of_the_working_directory(checkout, monkeypatch, script):
    monkeypatch.chdir(checkout)
    assert commit(script) == COMMIT


def test_a_detached_head(checkout):
    (checkout / ".git" / "HEAD").write_text(COMMIT[::-1] + "\n")
    assert commit(checkout / "train.py") == COMMIT[::-1]


def test_a_packed_reference(checkout):
    (checkout / ".git" / "refs" / "heads" / "main").unlink()
    (checkout / ".git" / "packed-refs").write_text(
        f"# pack-refs\n{COMMIT[::-1]} refs/heads/domain\n{COMMIT} refs/heads/main\n"
    )
    assert commit(checkout / "train.py") == COMMIT


def test_a_worktree(checkout, tmp_path):
    worktree = tmp_path / "other"
    worktree.mkdir()
    private = checkout / ".git" / "worktrees" / "other"
    private.mkdir(parents=True)
    (worktree / ".git").write_text(f"gitdir: {private}\n")
    (private / "HEAD").write_text("ref: refs/heads/side\n")
    (private / "commondir").write_text("../..\n")
    (checkout / ".git" / "refs" / "heads" / "side").write_text(COMMIT[::-1] + "\n")
    assert commit(worktree / "train.py") == COMMIT[::-1]


@pytest.mark.parametrize(
    "head", [b"", b"\xff\xfe", b"ref: ", b"ref: refs/heads/none\n", b"ref: ../../../etc/passwd", b"x" * 100]
)
def test_a_broken_checkout_has_no_commit_that_is_not_one(checkout, head):
    (checkout / ".git" / "HEAD").write_bytes(head)
    assert set(commit(checkout / "train.py")) <= set("0123456789abcdef")


def test_no_checkout_no_commit(tmp_path):
    assert commit(tmp_path / "train.py") == ""


def test_a_working_directory_that_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert who(script="train.py").run.startswith("train-")


def test_a_script_that_is_a_loop_of_links(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert who(script=str(tmp_path / "loop" / "train.py")).run.startswith("train-")


def test_an_empty_argument_list(monkeypatch):
    monkeypatch.setattr("sys.argv", [])
    assert identify(load({}, {}), {}).run
