"""Runs from start to finish: one after the other, in forked children, in threads, in DataLoader workers."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import urllib.request

import pytest

import paddle_exporter
from paddle_exporter.page_reader import PageReader

STEPS = "paddle_train_steps_total"


def state_of(read, page):
    return read(page).state


# --- starting ---------------------------------------------------------------------------------------------------


def test_a_run_is_served_from_its_start_with_known_series_at_0(start, scrape):
    seen = scrape(start().url)
    assert seen(STEPS) == 0
    assert seen("paddle_train_nonfinite_total", scalar="loss") == 0
    assert seen("paddle_train_spikes_total", scalar="loss") == 0
    assert seen("paddle_run_state", state="starting") == 1


def test_what_is_told_is_served(start, scrape):
    run = start(target_steps=100, first_step=10, tags={"team": "nlp"}, seed=7)
    run.step(samples=4, loss=2.5)
    seen = scrape(run.url)
    assert (seen("paddle_train_loss"), seen("paddle_train_global_step"), seen("paddle_train_target_steps")) == (
        2.5,
        11,
        100,
    )
    info = seen.labels("paddle_run_info")
    assert (info["run"], info["rank"], info["tag_team"], info["seed"]) == (run.name, "0", "nlp", "7")
    assert info["exporter"] == paddle_exporter.__version__


def test_a_second_start_of_the_same_name_or_none_is_the_same_run(start):
    run = start("a")
    assert start("a") is run
    assert start() is run


def test_a_start_of_another_name_ends_the_first_run(start, read):
    first = start("a")
    second = start("b")
    assert state_of(read, first.page) == "finished"
    assert state_of(read, second.page) == "starting"
    assert (first.state, second.state, second.name) == ("finished", "running", "b")


def test_a_run_can_be_started_after_one_that_finished(start, scrape):
    first = start("a")
    first.step()
    first.finish()
    second = start("a")
    assert second is not first
    assert scrape(second.url)(STEPS) == 0
    second.step()
    assert scrape(second.url)(STEPS) == 1


def test_a_notebook_s_cell_can_be_run_again_and_again(start):
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    for _ in range(10):
        with start("cell") as run:
            run.step(loss=1.0)
    assert threading.active_count() <= before[0] + 1
    assert len(os.listdir("/proc/self/fd")) <= before[1] + 4


def test_starts_of_threads_at_once_are_one_run(start):
    runs = []
    threads = [threading.Thread(target=lambda: runs.append(start("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, runs))) == 1


def test_ports_are_the_base_and_the_local_rank(start, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        base = probe.getsockname()[1] - 3
    monkeypatch.setenv("PADDLE_LOCAL_RANK", "3")
    run = start(port=base, port_tries=1)
    assert run.url == f"http://127.0.0.1:{base + 3}/metrics"


def test_a_taken_port_is_told_in_the_log_and_the_next_one_in_the_target_file(start, tmp_path, caplog):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        run = start(port=port, targets_dir=tmp_path / "t")
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1
    assert str(port) in told[0]
    assert run.url in told[0]
    (target,) = (tmp_path / "t").glob("*.json")
    assert run.url.partition("//")[2].partition("/")[0] in target.read_text()


@pytest.mark.parametrize("address", ["203.0.113.1", "no-such-host.invalid"])
def test_an_endpoint_that_cannot_be_does_not_cost_the_page(start, address, caplog, read):
    run = start(address=address)
    run.step(loss=1.0)
    assert run.url is None
    assert run.page is not None
    assert {name: value for name, _, value in read(run.page)}["paddle_train_loss"] == 1.0
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_disabled_makes_no_file_no_port_and_no_thread(start, page_dir):
    before = threading.active_count()
    run = start(enabled=False)
    run.step(loss=1.0)
    run.eval(acc=1.0)
    with run.phase("eval"):
        pass
    assert (run.url, run.page, list(page_dir.iterdir())) == (None, None, [])
    assert threading.active_count() == before


def test_without_serving_there_is_a_page_and_no_thread(start, read):
    before = threading.active_count()
    run = start(serve=False)
    run.step()
    assert run.url is None
    assert threading.active_count() == before
    assert read(run.page).alive


# --- finishing --------------------------------------------------------------------------------------------------


def test_a_finished_run_s_page_tells_so_and_keeps_the_last_values(start, read, scrape):
    run = start()
    run.step(loss=1.25)
    page = run.page
    run.finish()
    assert not read(page).alive
    seen = scrape(page)
    assert seen("paddle_run_state", state="finished") == 1
    assert (seen(STEPS), seen("paddle_train_loss")) == (1, 1.25)


def test_what_waits_for_a_detector_is_taken_in_at_the_end(start, scrape):
    run = start()
    for loss in [2.0] * 50 + [9.0] * 5:
        run.log(loss=loss)
    page = run.page
    run.finish()
    assert scrape(page)("paddle_train_spikes_total", scalar="loss") == 1


def test_the_first_finish_counts(start, read):
    run = start()
    run.finish("failed", exception="X")
    run.finish()
    assert state_of(read, run.page) == "failed"


def test_finishes_of_threads_at_once_are_one(start, read):
    run = start()
    threads = [threading.Thread(target=run.finish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state_of(read, run.page) == "finished"


def test_calls_after_the_end_go_nowhere(start, read):
    run = start()
    run.step(loss=1.0)
    step = run.bind("loss")
    run.finish()
    before = run.page.read_bytes()
    run.step(loss=2.0)
    step(3.0)
    run.log(new=1.0)
    run.eval(loss=1.0)
    run.epoch(5)
    run.checkpoint(1.0)
    run.reload(7)
    run.skipped_step()
    with run.phase("data"):
        pass
    assert run.page.read_bytes() == before


def test_the_end_of_a_run_that_never_stepped(start, read):
    run = start()
    run.finish()
    run.step()
    assert state_of(read, run.page) == "finished"


def test_the_port_is_free_after_the_end(start):
    run = start()
    port = int(run.url.rpartition(":")[2].partition("/")[0])
    run.finish()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("error", "state", "fact"),
    [
        (None, "finished", {}),
        (SystemExit(), "finished", {}),
        (SystemExit(0), "finished", {}),
        (SystemExit(1), "failed", {"exception": "SystemExit"}),
        (SystemExit("message"), "failed", {"exception": "SystemExit"}),
        (ValueError("x"), "failed", {"exception": "ValueError"}),
        (MemoryError(), "failed", {"exception": "MemoryError"}),
        (KeyboardInterrupt(), "killed", {"signal": "SIGINT"}),
    ],
)
def test_how_the_block_is_left_is_how_the_run_ends(start, read, error, state, fact):
    def block():
        with start() as run:
            run.step()
            if error is not None:
                raise error
        return run

    if error is None:
        block()
    else:
        with pytest.raises(type(error)) as caught:
            block()
        assert caught.value is error
    run = paddle_exporter.run._active
    seen = read(run.page)
    assert seen.state == state
    assert {name: seen.info[name] for name in fact} == fact


@pytest.mark.parametrize("state", ["success", "", None, 5, "starting", "running"])
def test_an_end_that_is_no_end_state_still_closes_all(start, tmp_path, read, state):
    run = start(targets_dir=tmp_path / "t")
    url = run.url
    run.finish(state)
    assert list((tmp_path / "t").iterdir()) == []
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=5)
    assert state_of(read, run.page) in ("finished", "failed")


def test_facts_of_the_end_do_not_change_who_the_run_is(start, scrape):
    run = start("mine")
    run.finish("failed", run="other", rank="9", exception="X")
    seen = scrape(run.page)
    assert seen.labels("paddle_run_info")["run"] == "mine"
    assert {s.labels["run"] for s in seen.samples if "run" in s.labels} == {"mine"}


def test_a_page_full_of_names_still_records_the_end(start, read):
    run = start()
    for length in range(128, 0, -1):
        for i in range(3):
            run.log(**{f"{i}{'😀' * length}"[:length]: 1.0})
    run.step()
    run.finish("failed", exception="x" * 300)
    assert state_of(read, run.page) == "failed"


# --- lingering --------------------------------------------------------------------------------------------------


def scrape_as_prometheus(url):
    request = urllib.request.Request(url, headers={"X-Prometheus-Scrape-Timeout-Seconds": "10"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def test_the_end_is_not_waited_with_when_nobody_scrapes(start):
    run = start(linger=30)
    before = time.monotonic()
    run.finish()
    assert time.monotonic() - before < 2.0


def test_the_end_is_shown_to_one_more_scrape(start):
    run = start(linger=30)
    url = run.url
    for _ in range(2):  # when the second is answered, the first is known
        scrape_as_prometheus(url)
    ending = threading.Thread(target=run.finish)
    ending.start()
    while run.state == "running":
        pass
    text = scrape_as_prometheus(url)
    while 'state="finished"} 1.0' not in text:  # this one came before the end
        text = scrape_as_prometheus(url)
    ending.join(5.0)
    assert not ending.is_alive()


def test_the_end_waits_at_most_the_linger_time(start):
    run = start(linger=0.5)
    for _ in range(2):
        scrape_as_prometheus(run.url)
    before = time.monotonic()
    run.finish()
    assert 0.4 < time.monotonic() - before < 2.0


def test_an_interrupt_while_the_end_waits_leaves_no_target_behind(child, tmp_path, read, only_page):
    process = child(
        "import paddle_exporter, time, urllib.request\n"
        "run = paddle_exporter.start()\n"
        "header = {'X-Prometheus-Scrape-Timeout-Seconds': '10'}\n"
        "for i in range(2):\n"
        "    urllib.request.urlopen(urllib.request.Request(run.url, headers=header), timeout=5).read()\n"
        "    time.sleep(3 - 3 * i)\n"
        "print('up', flush=True)\n"
        "run.finish()\n",
        PADDLE_EXPORTER_LINGER="60",
        PADDLE_EXPORTER_TARGETS_DIR=str(tmp_path / "t"),
    )
    assert process.stdout.readline() == "up\n"
    while read(only_page()).state != "finished":
        pass
    process.send_signal(signal.SIGINT)
    process.wait(timeout=5)
    assert list((tmp_path / "t").iterdir()) == []


# --- forked children --------------------------------------------------------------------------------------------


def in_fork(function):
    """Run ``function`` in a forked child, and tell its exit status; it has 10 seconds."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_s_steps_count_nothing_and_the_parent_s_go_on(start, scrape):
    run = start()
    run.step(samples=1, loss=1.0)

    def child():
        for _ in range(100):
            run.step(samples=1, loss=9.0)
        run.log(new=1.0)
        run.epoch(9)
        with run.phase("eval"):
            pass

    assert in_fork(child) == 0
    run.step(samples=1, loss=2.0)
    seen = scrape(run.url)
    assert (seen(STEPS), seen("paddle_train_samples_total"), seen("paddle_train_loss")) == (2, 2, 2.0)
    assert seen("paddle_train_scalar", name="new") is None
    assert seen("paddle_train_epoch") is None


def test_a_child_that_ends_leaves_the_parent_s_run_alone(start, scrape, tmp_path, read):
    run = start(targets_dir=tmp_path / "t")
    assert in_fork(lambda: run.finish("failed")) == 0
    run.step()
    assert scrape(run.url)(STEPS) == 1
    assert read(run.page).state == "running"
    assert read(run.page).alive
    assert len(list((tmp_path / "t").iterdir())) == 1


def test_a_fork_in_the_middle_of_a_step_of_another_thread(start, scrape):
    run = start()
    stop = threading.Event()
    counted = []

    def steps():
        n = 0
        while not stop.is_set():
            run.step(samples=1, **{f"s{n % 150}": 1.0})
            n += 1
        counted.append(n)

    thread = threading.Thread(target=steps)
    thread.start()
    statuses = [in_fork(lambda: [run.step(**{f"c{i}": 1.0}) for i in range(20)]) for _ in range(40)]
    stop.set()
    thread.join()
    assert statuses == [0] * 40
    assert scrape(run.url)(STEPS) == counted[0]


def test_a_child_can_start_a_run_of_its_own(start, scrape):
    run = start("parent")

    def child():
        own = start("child")
        own.step(samples=5)
        assert scrape(own.url)("paddle_train_samples_total") == 5
        assert own.page != run.page

    assert in_fork(child) == 0
    assert scrape(run.url)(STEPS) == 0


FORKS = (
    "import os, sys, time, paddle_exporter\n"
    "run = paddle_exporter.start()\n"
    "url, page = run.url, run.page\n"
    "{before}"
    "pid = os.fork()\n"
    "if pid == 0:\n"
    "    {child}\n"
    "    print(os.getpid(), url, page, flush=True)\n"
    "    os.close(1)\n"
    "    time.sleep(60)\n"
    "    os._exit(0)\n"
    "sys.stdin.readline()\n"
    "{after}"
)


@pytest.fixture
def forking(child):
    """Start a process that forks; (process, child's pid, url, page). The child has done its part, and lives on."""
    pids = []

    def launch(before="", in_child="pass", after="time.sleep(60)\n"):
        process = child(FORKS.format(before=before, child=in_child, after=after))
        pid, url, page = process.stdout.readline().split()
        pids.append(int(pid))
        return process, int(pid), url, page

    yield launch
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_port_is_free_after_the_parent_s_end_though_the_child_lives(forking):
    process, pid, url, _ = forking()
    process.kill()
    process.wait()
    port = int(url.rpartition(":")[2].partition("/")[0])
    assert running(pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_the_page_is_dead_with_its_writer_though_the_child_lives(forking, read):
    from pathlib import Path

    process, pid, _, page = forking("run.step()\n")
    assert read(Path(page)).alive
    process.kill()
    process.wait()
    assert running(pid)
    assert not read(Path(page)).alive


@pytest.mark.parametrize("when", ["before the first step", "after it"])
def test_a_sigterm_to_a_child_is_not_the_parent_s(forking, scrape, when):
    from pathlib import Path

    process, pid, _, page = forking(
        "run.step()\n" if when == "after it" else "",
        "run.step(); run.step()",
        "run.step()\nprint('ok', flush=True)\ntime.sleep(60)\n",
    )
    reader = PageReader(Path(page))
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ok\n"
    os.kill(pid, signal.SIGTERM)
    while running(pid):
        pass
    process.kill()
    process.wait()
    seen = reader.read()
    reader.close()
    assert not seen.terminated
    assert scrape(Path(page))("paddle_run_state", state="vanished") == 1


def test_a_child_process_of_another_program_holds_nothing(child, read, only_page):
    process = child(
        "import subprocess, sys, time, paddle_exporter\n"
        "run = paddle_exporter.start()\n"
        "other = subprocess.Popen(['sleep', '60'], close_fds=False)\n"
        "print(other.pid, run.url, flush=True)\n"
        "time.sleep(60)\n"
    )
    pid, url = process.stdout.readline().split()
    try:
        process.kill()
        process.wait()
        assert running(int(pid))
        assert not read(only_page()).alive
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0])), timeout=5)
    finally:
        os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_processes_does_not_disturb_the_run(child, method):
    process = child(
        "import multiprocessing, sys, paddle_exporter\n"
        "def work(n):\n"
        "    return n * n\n"
        "if __name__ == '__main__':\n"
        "    run = paddle_exporter.start()\n"
        "    run.step(samples=1)\n"
        f"    with multiprocessing.get_context('{method}').Pool(2) as pool:\n"
        "        assert pool.map(abs, range(10)) == list(range(10))\n"
        "    run.step(samples=1)\n"
        "    import urllib.request\n"
        "    print(urllib.request.urlopen(run.url, timeout=5).read().decode())\n"
    )
    out, err = process.communicate(timeout=60)
    assert "paddle_train_samples_total{" in out, err
    assert next(line for line in out.splitlines() if line.startswith("paddle_train_samples_total{")).endswith(" 2.0")


@pytest.mark.paddle
def test_workers_of_a_dataloader_count_nothing(child):
    pytest.importorskip("paddle")
    process = child(
        "import logging; logging.basicConfig(level=logging.ERROR)\n"
        "import numpy, paddle, paddle_exporter, urllib.request\n"
        "run = paddle_exporter.start('r')\n"
        "class Data(paddle.io.Dataset):\n"
        "    def __len__(self): return 64\n"
        "    def __getitem__(self, i):\n"
        "        run.log(from_worker=1.0)\n"
        "        own = paddle_exporter.start('r')\n"
        "        own.step(samples=1000)\n"
        "        assert own.url is None and own.page is None\n"
        "        return numpy.float32([i])\n"
        "for epoch in range(2):\n"
        "    for batch in paddle.io.DataLoader(Data(), batch_size=8, num_workers=2):\n"
        "        run.step(samples=8, loss=batch.mean())\n"
        "print(urllib.request.urlopen(run.url, timeout=5).read().decode())\n"
    )
    out, err = process.communicate(timeout=120)
    values = dict(line.rpartition(" ")[::2] for line in out.splitlines() if line.startswith("paddle_train_"))
    assert {k.partition("{")[0]: v for k, v in values.items()}["paddle_train_samples_total"] == "128.0", err
    assert "from_worker" not in out
    assert 'state="running"} 1.0' in out


# --- importing --------------------------------------------------------------------------------------------------


def test_importing_imports_no_framework_no_numpy_and_no_client(child):
    process = child(
        "import sys\n"
        "before = set(sys.modules)\n"
        "import paddle_exporter\n"
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before}))\n"
    )
    out, _ = process.communicate(timeout=30)
    imported = set(eval(out))
    assert "paddle_exporter" in imported
    assert imported.isdisjoint({"paddle", "numpy", "prometheus_client", "http", "ssl", "asyncio", "pynvml"})


def test_the_recorder_imports_no_framework_and_no_client(child):
    process = child(
        "import sys, paddle_exporter\n"
        "run = paddle_exporter.start(serve=False)\n"
        "run.step(samples=1, loss=1.0)\n"
        "print({'paddle', 'numpy', 'prometheus_client'} & set(sys.modules))\n"
    )
    assert process.communicate(timeout=30)[0] == "set()\n"


def test_the_public_names():
    assert sorted(paddle_exporter.__all__) == ["Run", "__version__", "start"]
