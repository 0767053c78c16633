"""What is left when processes race, are killed, hang, or find no room: real processes, signals and file systems."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from paddle_exporter.page_reader import PageReader
from tools import binary

STEPS = "paddle_train_steps_total"


def values(snapshot):
    return {(name, *labels): value for name, labels, value in snapshot}


# --- readers and a writer that races ------------------------------------------------------------------------------

RACING_WRITER = """
import os, paddle_exporter
run = paddle_exporter.start(serve=False, max_scalars=400)
print(run.page, flush=True)
names = ["a", "b", "c", "d", "e", "f"]
i = 0
while True:
    i += 1
    run.step(samples=1, loss=float(i), **dict.fromkeys(names, float(i)))
    if i % 200 == 0 and len(names) < 150:
        names.append(f"new{i}")  # the page grows while it is read
"""

RACING_READER = """
import sys, time
from pathlib import Path
from paddle_exporter.page_reader import PageReader
reader = PageReader(Path(sys.argv[1]))
deadline = time.monotonic() + float(sys.argv[2])
reads, steps = 0, set()
while time.monotonic() < deadline:
    found = {(name, *labels): value for name, labels, value in reader.read()}
    step = found[("paddle_train_steps_total",)]
    known = ("paddle_train_loss", "paddle_train_samples_total", "paddle_train_scalar")
    of_steps = [value for key, value in found.items() if key[0] in known]
    assert all(value == step or value != value for value in of_steps), found
    assert found.get(("paddle_train_scalar", "a"), step) == step
    assert not steps or step >= max(steps)
    reads, steps = reads + 1, {step}
    first = min(globals().get("first", step), step)
print(reads, int(step - first))
"""


def test_readers_in_other_processes_see_values_of_one_step_together(child):
    writer = child(RACING_WRITER)
    page = writer.stdout.readline().strip()
    readers = [child(RACING_READER, page, "3") for _ in range(3)]
    for reader in readers:
        out, err = reader.communicate(timeout=60)
        assert reader.returncode == 0, err
        reads, moved = map(int, out.split())
        assert reads > 100
        assert moved > 100
    assert writer.poll() is None


def test_two_threads_of_the_writer_do_not_tear_what_one_of_them_stores(child):
    writer = child(
        "import paddle_exporter, sys, threading\n"
        "sys.setswitchinterval(1e-6)\n"
        "run = paddle_exporter.start(serve=False)\n"
        "run.step(samples=1, loss=1.0, a=1.0)\n"
        "print(run.page, flush=True)\n"
        "def noise():\n"
        "    while True: run.log(x=1.0)\n"
        "threading.Thread(target=noise, daemon=True).start()\n"
        "i = 1\n"
        "while True:\n"
        "    i += 1\n"
        "    run.step(samples=1, loss=float(i), a=float(i))\n"
    )
    page = Path(writer.stdout.readline().strip())
    reader = PageReader(page)
    deadline = time.monotonic() + 2.0
    reads = 0
    while time.monotonic() < deadline:
        found = values(reader.read())
        # A commit of the other thread may fall between the stores of a step's scalars and those of its counters.
        assert found[("paddle_train_loss",)] == found[("paddle_train_scalar", "a")]
        assert found[("paddle_train_loss",)] - found[(STEPS,)] in (0.0, 1.0)
        reads += 1
    reader.close()
    assert reads > 100


# --- death at any moment ------------------------------------------------------------------------------------------

MORTAL_WRITER = """
import os, paddle_exporter
run = paddle_exporter.start(serve=False)
print(run.page, flush=True)
i = 0
while True:
    i += 1
    run.step(samples=1, loss=float(i), a=float(i), **{f"new{i % 150}": float(i)})
    os.write(1, b"%d\\n" % i)
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV], ids=lambda s: s.name)
def test_a_killed_writer_s_page_is_whole_and_holds_its_last_step(child, scrape, kill):
    rng = random.Random(kill)
    for _ in range(15):
        writer = child(MORTAL_WRITER)
        page = Path(writer.stdout.readline().strip())
        last = 0
        for _ in range(rng.randrange(1, 400)):
            last = int(writer.stdout.readline())
        if rng.random() < 0.5:
            threading.Event().wait(rng.random() * 0.002)
        writer.send_signal(kill)
        writer.wait()
        last = int(([last, *writer.stdout.read().split("\n")[:-1]])[-1])
        seen = scrape(page)
        assert seen(STEPS) in (last, last + 1)
        assert seen("paddle_train_samples_total") == seen("paddle_train_loss") == seen(STEPS)
        assert seen("paddle_train_scalar", name="a") == seen(STEPS)
        assert seen("paddle_run_state", state="vanished") == 1


def test_a_page_of_a_process_killed_while_starting_never_harms(child, scrape, page_dir):
    rng = random.Random(5)
    for _ in range(15):
        writer = child("print('up', flush=True)\n" + MORTAL_WRITER)
        writer.stdout.readline()
        threading.Event().wait(rng.random() * 0.12)
        writer.kill()
        writer.wait()
    pages = sorted(page_dir.glob("*.page"))
    witness = child(MORTAL_WRITER)
    own = Path(witness.stdout.readline().strip())
    witness.stdout.readline()
    seen = scrape(own, *pages)
    assert seen.total(STEPS) >= 1


# --- how a process ends -------------------------------------------------------------------------------------------

START = "import paddle_exporter, os, signal, sys, time\nrun = paddle_exporter.start()\nrun.step(loss=1.0)\n"
STARTED = START + "print('up', flush=True)\n"
SLEEP = "time.sleep(60)\n"

ENDS = {
    "the end of the script": (START, None, "finished"),
    "sys.exit(0)": (START + "sys.exit(0)\n", None, "finished"),
    "an exception": (START + "raise ValueError('x')\n", None, "failed"),
    "an exception in a block": (START + "with run:\n    raise ValueError('x')\n", None, "failed"),
    "sys.exit(1) in a block": (START + "with run:\n    sys.exit(1)\n", None, "failed"),
    "sys.exit in a block": (START + "with run:\n    sys.exit()\n", None, "finished"),
    "os._exit": (START + "os._exit(0)\n", None, "vanished"),
    "os.abort": (START + "os.abort()\n", None, "vanished"),
    "SIGINT": (STARTED + SLEEP, signal.SIGINT, "killed"),
    "SIGINT in a block": (
        START + "with run:\n    print('up', flush=True)\n    time.sleep(60)\n",
        signal.SIGINT,
        "killed",
    ),
    "SIGTERM": (STARTED + SLEEP, signal.SIGTERM, "killed"),
    "SIGTERM in a block": (
        START + "with run:\n    print('up', flush=True)\n    time.sleep(60)\n",
        signal.SIGTERM,
        "killed",
    ),
    "SIGTERM in a loop": (STARTED + "while True: run.step(loss=1.0)\n", signal.SIGTERM, "killed"),
    "SIGTERM before the first step": (
        STARTED.replace("run.step(loss=1.0)\n", "") + SLEEP,
        signal.SIGTERM,
        "killed",
    ),
    "SIGKILL": (STARTED + SLEEP, signal.SIGKILL, "vanished"),
}


@pytest.mark.parametrize("how", ENDS)
def test_the_page_tells_how_the_process_ended(child, scrape, only_page, how):
    script, kill, state = ENDS[how]
    process = child(script)
    if kill is not None:
        assert process.stdout.readline() == "up\n"
        before = time.monotonic()
        process.send_signal(kill)
        process.wait(timeout=10)
        assert time.monotonic() - before < 3.0
        assert process.returncode == -kill or kill == signal.SIGINT
    process.communicate(timeout=10)
    seen = scrape(only_page())
    assert [s.labels["state"] for s in seen.samples if s.name == "paddle_run_state" and s.value] == [state]
    assert seen("paddle_train_loss") == (None if "before" in how else 1.0)


def test_an_exception_s_traceback_is_still_shown_and_the_status_kept(child):
    process = child(START + "raise ValueError('my message')\n")
    _, err = process.communicate(timeout=10)
    assert "ValueError: my message" in err
    assert process.returncode == 1


def test_sigterm_kills_a_rank_that_hangs_in_c_with_the_interpreter_lock_held(child, scrape, only_page):
    process = child(STARTED + "import ctypes\ndef collective():\n    ctypes.PyDLL(None).sleep(30)\ncollective()\n")
    assert process.stdout.readline() == "up\n"
    while "sleep" not in Path(f"/proc/{process.pid}/wchan").read_text() or _on_python_code(process.pid):
        pass
    before = time.monotonic()
    process.terminate()
    process.wait(timeout=10)
    assert time.monotonic() - before < 2.0
    assert process.returncode == -signal.SIGTERM
    page = only_page()
    assert scrape(page)("paddle_run_state", state="killed") == 1
    assert "in collective" in page.with_suffix(".sigterm").read_text()


def _on_python_code(pid):
    """Whether the main thread is not yet in the long sleep: it has been scheduled lately."""
    schedule = Path(f"/proc/{pid}/task/{pid}/schedstat")
    before = schedule.read_text()
    threading.Event().wait(0.1)
    return schedule.read_text() != before


HANDLER = "signal.signal(signal.SIGTERM, lambda *a: (print('mine', flush=True), sys.exit(3)))\n"


@pytest.mark.parametrize(
    "before", ["run = ", "run.step", "print"], ids=["before start", "before the first step", "after it"]
)
def test_the_user_s_own_sigterm_handler_still_runs(child, before):
    process = child(STARTED.replace(before, HANDLER + before) + SLEEP)
    assert process.stdout.readline() == "up\n"
    process.terminate()
    assert process.stdout.readline() == "mine\n"
    assert process.wait(timeout=10) == 3


def test_a_sigterm_that_is_ignored_is_survived(child):
    process = child(
        STARTED.replace("run = ", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nrun = ") + "sys.stdin.readline()\n"
    )
    assert process.stdout.readline() == "up\n"
    process.terminate()
    process.communicate("\n", timeout=10)
    assert process.returncode == 0


@pytest.mark.paddle
def test_sigterm_is_told_where_paddle_was_imported_after_the_start(child, scrape, only_page):
    pytest.importorskip("paddle")
    process = child(STARTED.replace("run.step", "import paddle\nrun.step") + SLEEP)
    while process.stdout.readline() != "up\n":
        assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=20) == -signal.SIGTERM
    seen = scrape(only_page())
    assert seen("paddle_run_state", state="killed") == 1
    assert seen.labels("paddle_run_info")["paddle"]


STEPPING = "for i in range(100): run.step(loss=2.0)\n"


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a file system in memory")
def test_a_restarted_rank_does_not_take_away_the_page_of_the_one_that_died(child):
    """The page of a run that lasted longer than pages are kept, and died a moment ago, is the one people need most.

    A file system in memory does not move a file's time for each store through a mapping.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        old = STEPPING + "os.utime(run.page, (1, 1))\n" + STEPPING + "print('old', flush=True)\n"
        first = child(STARTED + old + SLEEP, PADDLE_EXPORTER_PAGE_DIR=directory)
        assert first.stdout.readline() == "up\n"
        assert first.stdout.readline() == "old\n"
        (page,) = Path(directory).glob("*.page")
        first.kill()
        first.wait()
        second = child(STARTED + SLEEP, PADDLE_EXPORTER_PAGE_DIR=directory)
        assert second.stdout.readline() == "up\n"
        assert page.exists()


def test_old_pages_of_dead_processes_are_taken_away_and_those_of_living_ones_are_not(child, page_dir):
    living = child(STARTED + "os.utime(run.page, (1, 1))\nprint('old', flush=True)\n" + SLEEP)
    dead = child(STARTED + SLEEP)
    for process in (living, dead):
        assert process.stdout.readline() == "up\n"
    assert living.stdout.readline() == "old\n"
    (page,) = page_dir.glob(f"*-{dead.pid}-*.page")
    dead.kill()
    dead.wait()
    os.utime(page, (1, 1))
    third = child(STARTED + SLEEP, PADDLE_EXPORTER_PAGE_RETENTION="0")
    assert third.stdout.readline() == "up\n"
    assert {int(path.name.split("-")[1]) for path in page_dir.glob("*.page")} == {living.pid, third.pid}


def test_things_in_the_page_directory_that_are_not_ours_are_left_alone(child, page_dir, tmp_path):
    (tmp_path / "precious").write_text("x")
    (page_dir / "link.page").symlink_to(tmp_path / "precious")
    (page_dir / "dangling.page").symlink_to(tmp_path / "none")
    (page_dir / "folder.page").mkdir()
    (page_dir / "notes.txt").write_text("x")
    for path in (page_dir / "notes.txt", page_dir / "folder.page", tmp_path / "precious"):
        os.utime(path, (1, 1))
    process = child(STARTED, PADDLE_EXPORTER_PAGE_RETENTION="0")
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert (tmp_path / "precious").read_text() == "x"
    assert (page_dir / "notes.txt").exists()
    assert (page_dir / "folder.page").exists()


# --- no room, no permission -----------------------------------------------------------------------------------------

LOOP = (
    "import logging, paddle_exporter, sys\n"
    "logging.basicConfig(level=logging.INFO, format='%(levelname)s %(message)s')\n"
    "run = paddle_exporter.start()\n"
    "for i in range(2000): run.step(samples=1, loss=1.0, **{f's{i % 200}': 1.0})\n"
    "import urllib.request\n"
    "text = urllib.request.urlopen(run.url, timeout=5).read().decode()\n"
    "print([l.rpartition(' ')[2] for l in text.splitlines() if l.startswith('paddle_train_steps_total{')], run.page)\n"
)


# What another user may not be able to read where this test runs.
IMPORTS = (
    "import logging, os, sys, urllib.request, paddle_exporter.serve\n"
    "from paddle_exporter.collectors import ranks, self\n"
    "from paddle_exporter.hooks import device_copy\n"
    "''.encode('idna')\n"
)


def can_mount():
    with contextlib.suppress(OSError):
        return (
            os.geteuid() == 0
            and subprocess.run(
                ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev/shm"], check=False, capture_output=True
            ).returncode
            == 0
        )
    return False


mounting = pytest.mark.skipif(not can_mount(), reason="needs to mount file systems of its own")


READ_ONLY = (
    "for d in /tmp /var/tmp /usr/tmp /root /home; do\n"
    "  mount --bind $d $d && mount -o remount,bind,ro $d\n"
    "done 2>/dev/null || true\n"
)


@pytest.fixture
def boxed(tmp_path, child):
    """Run a script where the file systems are as ``prepare``, a shell script, makes them, and nobody else sees them."""

    def run(prepare, script=LOOP, user=0, **environment):
        temporary = tmp_path / "tmp"
        temporary.mkdir()
        become = f"{IMPORTS}os.setgid({user}); os.setuid({user})\n" if user else ""
        settings = {
            "PADDLE_EXPORTER_ADDRESS": "127.0.0.1",
            "PADDLE_EXPORTER_PORT": "0",
            "PADDLE_EXPORTER_LINGER": "0",
            "TMPDIR": str(temporary),
            "PYTHONPATH": str(Path(sys.modules["paddle_exporter"].__file__).resolve().parents[1]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            ["unshare", "-m", "sh", "-ec", prepare + '\nexec "$0" -c "$1"', sys.executable, become + script],
            env={**os.environ, **settings, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        warnings = [line for line in done.stderr.splitlines() if line.startswith(("WARNING", "ERROR"))]
        assert done.returncode == 0, done.stderr
        return done.stdout, warnings, temporary

    return run


@mounting
@pytest.mark.parametrize(
    "prepare",
    [
        "mount -t tmpfs -o size=64k none /dev/shm",
        "mount -t tmpfs -o size=8m none /dev/shm; head -c 8m /dev/zero >/dev/shm/fill || true",
        "mount -t tmpfs -o ro none /dev/shm",
        "mount -t tmpfs none /dev/shm; cd /dev/shm; mkdir -m 700 paddle-exporter-0; chown nobody paddle-exporter-0",
        "mount -t tmpfs none /dev/shm; cd /dev/shm; mkdir paddle-exporter-0; chmod 777 paddle-exporter-0",
        "mount -t tmpfs none /dev/shm; cd /dev/shm; mkdir -m 700 x; ln -s /dev/shm/x paddle-exporter-0",
        "mount -t tmpfs none /dev/shm; touch /dev/shm/paddle-exporter-0",
    ],
    ids=["tiny", "full", "read-only", "foreign", "open", "symlink", "file"],
)
def test_without_room_in_shared_memory_training_goes_on_with_a_page_elsewhere(boxed, prepare):
    out, warnings, temporary = boxed(prepare)
    assert out.startswith("['2000.0'] ")
    assert out.split()[-1].startswith(str(temporary / "paddle-exporter-0"))
    assert 1 <= len(warnings) <= 2


@mounting
def test_an_ordinary_start_makes_a_private_directory_in_shared_memory_and_warns_of_nothing(boxed):
    script = LOOP + "import os\nprint(oct(os.stat(run.page.parent).st_mode), oct(os.stat(run.page).st_mode))\n"
    out, warnings, _ = boxed("mount -t tmpfs none /dev/shm", script)
    assert "/dev/shm/paddle-exporter-0/" in out
    assert "0o40700 0o100600" in out
    assert warnings == []


@mounting
def test_a_directory_that_is_set_and_not_permitted_is_told_and_another_one_taken(boxed):
    out, warnings, _ = boxed(
        "mount -t tmpfs none /dev/shm; mkdir -m 755 /dev/shm/theirs; chmod 1777 /dev/shm",
        user=65534,
        PADDLE_EXPORTER_PAGE_DIR="/dev/shm/theirs/pages",
    )
    assert "/dev/shm/paddle-exporter-65534/" in out
    assert any("/dev/shm/theirs/pages" in line for line in warnings)


@mounting
def test_no_file_can_be_written_at_all_and_values_are_served(boxed):
    """A read-only container: the temporary directory cannot be found either."""
    prepare = READ_ONLY + "mount -t tmpfs -o ro none /dev/shm; ulimit -f 0; cd /proc"
    out, warnings, _ = boxed(prepare)
    assert out == "['2000.0'] None\n"
    assert 1 <= len(warnings) <= 5


@mounting
def test_only_shared_memory_can_be_written(boxed):
    prepare = READ_ONLY + "mount -t tmpfs none /dev/shm; cd /proc"
    out, _, _ = boxed(prepare, TMPDIR="/nowhere")
    assert out.startswith("['2000.0'] /dev/shm/paddle-exporter-0/")


@mounting
def test_shared_memory_that_fills_up_later_does_not_kill(boxed):
    script = LOOP.replace("for i in", "open('/dev/shm/fill', 'wb', buffering=0).write(bytes(10**6))\nfor i in")
    out, _, _ = boxed("mount -t tmpfs -o size=600k none /dev/shm", script)
    assert out.startswith("['2000.0'] /dev/shm/")


# --- many scrapes, many ranks ---------------------------------------------------------------------------------------

SCRAPED_LOOP = """
import paddle_exporter, sys
run = paddle_exporter.start(serve=True)
print(run.url, flush=True)
i = 0
while True:
    i += 1
    with run.phase("data"):
        sum(range(500))
    run.step(samples=2, tokens=3, loss=float(i), **{"a": float(i), "b": float(i)})
    with run.phase("optimizer"):
        sum(range(500))
"""


def fetch(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while True:
            data = connection.recv(1 << 20)
            if not data:
                break
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    assert len(body) == int(head.lower().partition(b"content-length: ")[2].split()[0])
    return body.decode()


def counters(text):
    found, plain = {}, {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            plain[(sample.name, sample.labels.get("name"))] = sample.value
            if sample.name.endswith(("_total", "_bucket", "_count", "_sum")):
                found[key] = sample.value
    return found, plain


def scraped_for_10_seconds(port, a_second):
    """The expositions that each of 4 clients got, in their order."""
    texts, errors = [[] for _ in range(4)], []
    begin = time.monotonic()

    def load(mine):
        for i in range(10 * a_second // len(texts)):
            pause = begin + i * len(texts) / a_second - time.monotonic()
            if pause > 0:
                threading.Event().wait(pause)
            if time.monotonic() - begin > 15:
                break
            try:
                mine.append(fetch(port))
            except OSError as error:
                errors.append(error)

    threads = [threading.Thread(target=load, args=(mine,)) for mine in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return texts


def test_200_scrapes_a_second_are_each_consistent_and_no_counter_falls(child):
    process = child(SCRAPED_LOOP)
    port = int(process.stdout.readline().rpartition(":")[2].partition("/")[0])
    texts = scraped_for_10_seconds(port, a_second=200)
    assert process.poll() is None
    assert sum(map(len, texts)) > 300
    for mine in texts:
        before = {}
        for text in mine:
            now, plain = counters(text)
            steps = plain[(STEPS, None)]
            if steps:
                assert plain[("paddle_train_samples_total", None)] == 2 * steps
                assert plain[("paddle_train_tokens_total", None)] == 3 * steps
                assert plain[("paddle_train_loss", None)] == steps
                assert plain[("paddle_train_scalar", "a")] == plain[("paddle_train_scalar", "b")] == steps
            fallen = {key: (before[key], value) for key, value in now.items() if value < before.get(key, 0.0)}
            assert fallen == {}
            before = now


def test_ranks_that_start_at_once_on_one_base_port_all_serve(child):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        base = min(probe.getsockname()[1], 60000)
    script = (
        "import paddle_exporter, sys\nrun = paddle_exporter.start()\nprint(run.url, flush=True)\nsys.stdin.read()\n"
    )
    ranks = [
        child(script, PADDLE_EXPORTER_PORT=str(base), PADDLE_TRAINER_ID=str(i), PADDLE_LOCAL_RANK=str(i % 3))
        for i in range(6)
    ]
    ports = [int(rank.stdout.readline().rpartition(":")[2].partition("/")[0]) for rank in ranks]
    assert len(set(ports)) == 6
    assert {rank for port in ports for rank in range(6) if f'rank="{rank}"' in fetch(port)} == set(range(6))


def test_the_target_directory_holds_one_file_a_living_rank(child, page_dir):
    script = (
        "import paddle_exporter, sys\nrun = paddle_exporter.start('r')\nprint('up', flush=True)\nsys.stdin.readline()\n"
    )
    ranks = [child(script, PADDLE_TRAINER_ID=str(i)) for i in range(3)]
    for rank in ranks:
        assert rank.stdout.readline() == "up\n"
    assert len(list((page_dir / "targets").glob("*.json"))) == 3
    ranks[0].communicate("\n", timeout=10)
    assert len(list((page_dir / "targets").glob("*.json"))) == 2


def test_promtool_is_happy_with_a_page_of_a_dead_rank(child, only_page):
    from prometheus_client import CollectorRegistry, generate_latest

    from paddle_exporter.collectors.guard import Guard
    from paddle_exporter.collectors.ranks import RankCollector

    process = child(STARTED + SLEEP)
    process.stdout.readline()
    process.kill()
    process.wait()
    reader = PageReader(only_page())
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Guard({"ranks": RankCollector(lambda: [reader])}))
    text = generate_latest(registry).decode()
    reader.close()
    check = subprocess.run(
        [binary("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")
    assert 'state="vanished"} 1.0' in text
