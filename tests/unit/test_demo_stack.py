"""The demo's Prometheus and Alertmanager: the operators' files, free ports, and an end."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import threading
import urllib.request
from pathlib import Path

import pytest
import yaml

from paddle_exporter.assets import asset
from paddle_exporter.demo import processes
from paddle_exporter.demo.binaries import Tool, find
from paddle_exporter.demo.stack import Stack, StackError, free_port, lay_out


@pytest.fixture
def tools():
    """Both servers, as they are installed here."""
    wanted = {"prometheus": ("prometheus",), "alertmanager": ("alertmanager", "prometheus-alertmanager")}
    if not all(any(map(shutil.which, names)) for names in wanted.values()):
        if os.environ.get("CI") == "true":
            pytest.fail("Prometheus and Alertmanager are not on PATH")
        pytest.skip("needs Prometheus and Alertmanager")
    return find(print)


def test_the_files_are_those_of_operators_but_for_the_intervals(tmp_path):
    folder = tmp_path / "stack"
    folder.mkdir()
    targets = lay_out(folder)
    for name in ("alertmanager.yml", *(f"rules/{path.name}" for path in asset("alerts/rules").iterdir())):
        assert (folder / name).read_bytes() == (asset("alerts") / name).read_bytes()
    ours = yaml.safe_load((folder / "prometheus.yml").read_text())
    theirs = yaml.safe_load(asset("compose/prometheus/prometheus.yml").read_text())
    assert ours["global"].pop("scrape_interval") == ours["global"].pop("evaluation_interval") == "1s"
    for name in ("scrape_interval", "evaluation_interval", "scrape_timeout"):
        theirs["global"].pop(name, None)
    assert ours == theirs
    assert targets.is_dir()
    wanted = next(job for job in theirs["scrape_configs"] if job["job_name"] == "paddle")["file_sd_configs"][0]["files"]
    assert wanted == [f"{targets.relative_to(folder)}/*.json"]


def test_a_free_port_is_free():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read()


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "stack"
    place.mkdir()
    return place


def test_both_run_on_the_loopback_only_and_end(tools, folder):
    with Stack(tools, folder) as stack:
        stack.start()
        pids = [server.process.pid for server in stack._servers]
        for url in (stack.prometheus, stack.alertmanager):
            assert url.startswith("http://127.0.0.1:")
            assert get(f"{url}/-/healthy")
        for pid in pids:
            assert listens_on(pid) == {"127.0.0.1"}
        rules = get(f"{stack.prometheus}/api/v1/rules").decode()
        assert "LossNonFinite" in rules
        assert "RankMissing" in rules
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def listens_on(pid):
    """Addresses on which the process takes TCP connections."""
    sockets = {
        os.readlink(entry)[8:-1] for entry in Path(f"/proc/{pid}/fd").iterdir() if "socket:" in os.readlink(entry)
    }
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = [raw[i : i + 4][::-1] for i in range(0, len(raw), 4)]
                found.add(socket.inet_ntop(family, b"".join(words)))
    return found


@pytest.mark.parametrize("answers", [False, True])
def test_a_port_that_was_taken_meanwhile_is_no_error(tools, folder, answers):
    """Whoever has it may even answer every request with 200."""

    class Yes(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Yes) as other:
        if answers:
            threading.Thread(target=other.serve_forever, daemon=True).start()
        ports = iter([other.server_port, free_port(), other.server_port, free_port()])
        with Stack(tools, folder) as stack:
            stack.start(lambda: next(ports))
            assert str(other.server_port) not in stack.prometheus + stack.alertmanager
            assert b"Prometheus" in get(f"{stack.prometheus}/-/ready")
            started = list(stack._started)
        assert len(started) == 4
        assert all(process.poll() is not None for process in started)
        if answers:
            other.shutdown()


def test_a_server_that_does_not_start_is_an_error_with_the_end_of_its_log(tools, folder):
    broken = {**tools, "prometheus": Tool("prometheus", Path(shutil.which("false")))}
    with Stack(broken, folder) as stack, pytest.raises(StackError, match="prometheus did not start"):
        stack.start()
    assert stack._started[0].poll() is not None, "Alertmanager, which did start, was ended"


def test_a_broken_configuration_is_shown(tools, folder):
    with Stack(tools, folder) as stack:
        (folder / "rules/broken.yml").write_text("groups: [{name: x, rules: [{alert: A, expr: '((('}]}]\n")
        with pytest.raises(StackError, match=r"broken\.yml"):
            stack.start()


def test_kept_servers_stay(tools, folder):
    with Stack(tools, folder, survive=True) as stack:
        stack.start()
        stack.keep()
        kept = list(stack._started)
    try:
        assert get(f"{stack.prometheus}/-/ready")
    finally:
        for process in kept:
            processes.end(process)
