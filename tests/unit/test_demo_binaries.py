"""Where Prometheus and Alertmanager are taken from: PATH, cache, the system's archive, Docker; or what to install."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from paddle_exporter.demo import binaries, debian

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
BASICS = ("sh", "dirname", "readlink", "cat", "cp", "ls")


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder that is the whole PATH, and an empty cache."""
    folder = tmp_path / "path"
    folder.mkdir()
    for name in BASICS:
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def put(folder, name, script="exit 0"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder / name


def find():
    said = []
    return binaries.find(said.append), said


@pytest.mark.parametrize("name", ["alertmanager", "prometheus-alertmanager"])
def test_what_is_on_path_is_taken_without_a_word(path, tmp_path, name):
    put(path, "prometheus")
    put(path, name)
    tools, said = find()
    assert tools["alertmanager"].command(tmp_path, "x") == [str(path / name)]
    assert tools["prometheus"].command(tmp_path, "x") == [str(path / "prometheus")]
    assert said == []
    assert not (tmp_path / "cache").exists()


def test_the_cache_makes_up_for_what_path_lacks(path, tmp_path):
    put(path, "prometheus")
    cached = put(tmp_path / "cache/paddle-exporter/stack/bin", "alertmanager")
    put(cached.parent, "prometheus")
    tools, said = find()
    assert (tools["prometheus"].path, tools["alertmanager"].path) == (path / "prometheus", cached)
    assert said == []


def test_an_error_says_what_to_install(path):
    with pytest.raises(binaries.MissingError) as error:
        find()
    for word in ("prometheus and alertmanager not found", "apt-get install", "https://prometheus.io/download/"):
        assert word in str(error.value)


def test_docker_is_the_last_resort(path, tmp_path):
    put(path, "docker", f'echo "$@" >> {tmp_path}/calls; [ "$1 $2" != "image inspect" ]')
    tools, said = find()
    command = tools["prometheus"].command(tmp_path / "stack", "demo-1")
    assert command[:6] == ["docker", "run", "--rm", "--name", "demo-1", "--network"]
    assert f"{tmp_path}/stack:{tmp_path}/stack" in command
    assert command[-1].startswith("prom/prometheus:")
    calls = (tmp_path / "calls").read_text()
    assert "pull --quiet prom/alertmanager:" in calls
    assert len(said) == 2


def test_docker_that_does_not_run_is_no_resort(path):
    put(path, "docker", "exit 1")
    with pytest.raises(binaries.MissingError):
        find()


@pytest.fixture
def archive(path, tmp_path):
    """Debian packages as the archive has them, and an apt-get that hands them out."""
    tree = tmp_path / "package"
    put(tree / "usr/bin", "prometheus", 'echo prometheus "$@"')
    put(tree / "usr/bin", "promtool")
    put(tree / "usr/bin", "amtool")
    put(tree / "usr/bin", "prometheus-alertmanager", 'echo "$@"; cat /usr/share/prometheus/alertmanager/default.tmpl')
    templates = tree / "usr/share/prometheus/alertmanager"
    templates.mkdir(parents=True)
    (templates / "default.tmpl").write_text("the templates\n")
    control = tree / "DEBIAN/control"
    control.parent.mkdir()
    control.write_text("Package: both\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n")
    deb = tmp_path / "both.deb"
    for name in ("dpkg-deb", "tar", "rm"):
        (path / name).symlink_to(shutil.which(name, path=os.defpath))
    subprocess.run(["dpkg-deb", "-b", tree, deb], check=True, capture_output=True)
    put(path, "apt-cache", "exit 1")
    put(path, "apt-get", f'case "$*" in *download*) cp {deb} . ;; esac')
    return path


@needs_dpkg
def test_packages_are_unpacked_into_the_cache_and_run_from_there(archive, tmp_path):
    tools, said = find()
    assert "fetching" in said[0]
    assert any("no web pages" in line for line in said)
    stack = tmp_path / "cache/paddle-exporter/stack"
    assert sorted(path.name for path in (stack / "bin").iterdir()) == [
        "alertmanager",
        "amtool",
        "prometheus",
        "promtool",
    ]
    assert [path.name for path in stack.parent.iterdir()] == ["stack"], "nothing else is left in the cache"

    def run(name):
        command = [*tools[name].command(tmp_path, "x"), "--flag", "a b"]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout

    assert run("prometheus") == f"prometheus --web.local-assets={stack}/usr/share/prometheus/web --flag a b\n"
    assert run("alertmanager") == "--flag a b\nthe templates\n"
    assert find()[1] == [], "the second time, the cache has it"


@needs_dpkg
def test_missing_package_lists_are_fetched_into_the_cache(archive, tmp_path):
    script = (archive / "apt-get").read_text().splitlines()[1]
    put(archive, "apt-get", f'case "$*" in download*) echo "E: no lists" >&2; exit 100;; esac\n{script}')
    tools, said = find()
    assert any("package lists are missing" in line for line in said)
    assert len(tools) == 2


@needs_dpkg
def test_an_archive_without_them_is_an_error_that_says_so(archive):
    put(archive, "apt-get", 'echo "E: Unable to locate package prometheus" >&2; exit 100')
    with pytest.raises(binaries.MissingError, match="Unable to locate package prometheus"):
        find()


@needs_dpkg
def test_another_demo_that_was_faster_is_no_error(archive, tmp_path):
    stack = tmp_path / "cache/paddle-exporter/stack"
    put(stack / "bin", "theirs")
    debian.fetch(stack, print)
    assert (stack / "bin/theirs").exists()


def test_the_module_prints_folders_for_path(path, capsys):
    put(path, "prometheus")
    put(path, "alertmanager")
    assert binaries.main() == 0
    assert capsys.readouterr().out == f"{path}\n"


def test_the_module_fails_with_the_reason(path, capsys):
    assert binaries.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "not found" in err
