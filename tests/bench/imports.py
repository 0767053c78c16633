"""What importing costs a process: seconds, and memory, over a bare Python."""

from __future__ import annotations

import statistics
import subprocess
import sys

from timing import Line, interval

BARE, OURS = "bare Python", "import paddle_exporter"
CODE: dict[str, str] = {
    BARE: "",
    OURS: "import paddle_exporter",
    "paddle_exporter started, scraped once": (
        "import os, urllib.request, paddle_exporter\n"
        "where = {'page_dir': os.environ['BENCH_PAGES'], 'address': '127.0.0.1', 'port': 0}\n"
        "run = paddle_exporter.start(run='bench', linger=0, **where)\n"
        "run.step(loss=1.0)\n"
        "urllib.request.urlopen(run.url).read()"
    ),
    "import prometheus_client": "import prometheus_client",
    "import visualdl": "import visualdl",
    "import tensorboardX": "import tensorboardX",
    "import wandb": "import wandb",
}
LIMITS = {"ms": 50.0, "MB": 10.0}

_PROBE = """
import sys, time
started = time.perf_counter()
{code}
took = time.perf_counter() - started
size = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS"))
sys.stderr.flush()
print("PROBE", took, size, flush=True)
"""


def _probe(code: str) -> list[float]:
    """Milliseconds that ``code`` took in a process of its own, and the megabytes resident there."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROBE.format(code=code)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("PROBE")]
    if not found:
        raise ImportError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return [float(found[0][0]) * 1e3, float(found[0][1]) / 1024]


def measure(quick: bool) -> list[Line]:
    """The lines of this part: processes of all kinds take turns."""
    lines, able = [], []
    for what, code in CODE.items():
        try:
            _probe(code)  # the first one writes byte code
            able.append(what)
        except ImportError as error:
            lines.append(Line("import", what, skipped=str(error)))
    turns = [{what: _probe(CODE[what]) for what in able} for _ in range(3 if quick else 11)]
    for what in able[1:]:
        over = [[mine - bare for mine, bare in zip(turn[what], turn[BARE])] for turn in turns]
        limits = LIMITS if what == OURS else {}
        for index, (name, unit) in enumerate((("time", "ms"), ("memory", "MB"))):
            values = [both[index] for both in over]
            line = Line("import", f"{what}: {name}", unit, statistics.median(values), min(values))
            line.limit, (line.low, line.high) = limits.get(unit), interval(values)
            lines.append(line)
    return lines
