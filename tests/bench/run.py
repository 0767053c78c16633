"""What recording costs, beside what others cost: ``make bench``, or ``make bench ARGS=--quick``.

Absolute times are this machine's; ratios, of things that took turns in one run, are what the budgets are about.
Each part runs in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from timing import Line

PARTS = {"step": "steps", "sink": "sinks", "import": "imports", "scrape": "scrapes", "training": "training"}
PATIENCE = 170.0  # seconds that a part may take
MEMORY = "/dev/shm"


def main() -> int:
    """Run the parts that were asked for, print their lines, and write them to a file."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    if options.part:
        module = importlib.import_module(PARTS[options.part])
        Path(options.json).write_text(json.dumps([line.as_json() for line in module.measure(options.quick)]))
        return 0
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {_processor()}")
    lines: list[dict[str, Any]] = []
    for part in options.only:
        found = _run(part, options.quick)
        print(f"\n{part:<53} {'median':>10} {'least':>10}   ratio")
        for line in found:
            print(_text(line), flush=True)
        lines += found
    if options.json:
        about = {"python": platform.python_version(), "processor": _processor(), "cpus": os.cpu_count()}
        Path(options.json).write_text(json.dumps({**about, "quick": options.quick, "lines": lines}, indent=2) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="in under 40 seconds, and less exact")
    parser.add_argument("--only", type=_parts, default=list(PARTS), metavar="A,B", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--json", metavar="FILE", help="write the lines there")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # what the process of a part is told
    return parser.parse_args()


def _parts(text: str) -> list[str]:
    wanted = text.split(",")
    if not set(wanted) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"some of: {', '.join(PARTS)}")
    return [part for part in PARTS if part in wanted]


def _run(part: str, quick: bool) -> list[dict[str, Any]]:
    """The lines of ``part``; one that says why, where it did not come to an end."""
    files = Path(tempfile.mkdtemp(prefix="paddle-exporter-bench-"))
    pages = Path(tempfile.mkdtemp(prefix="paddle-exporter-bench-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
    answer = files / "lines.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PADDLE_", "WANDB_"))}
    environment.update(TMPDIR=str(files), HOME=str(files), BENCH_PAGES=str(pages))
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--part", part, "--json", str(answer)]
    child = subprocess.Popen(
        [*command, "--quick"] if quick else command,
        cwd=files,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    why = f"it took more than {PATIENCE:.0f} s"
    try:
        output, _ = child.communicate(timeout=PATIENCE)
        why = (output.strip().splitlines() or [f"it ended with {child.returncode}"])[-1]
        return json.loads(answer.read_text())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return [Line(part, "the whole part", skipped=why).as_json()]
    finally:
        _end(child)
        for directory in (files, pages):
            shutil.rmtree(directory, ignore_errors=True)


def _end(child: subprocess.Popen) -> None:
    """End what is left of ``child``'s session: services that a sink started, or all of it."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except OSError:
        return
    child.wait()


def _text(line: dict[str, Any]) -> str:
    if line["skipped"]:
        return f"  {line['what']:<51} skipped: {line['skipped'][:100]}"
    text = f"  {line['what']:<51} {line['median']:7.2f} {line['unit']} {line['minimum']:7.2f} {line['unit']}"
    if line["ratio"] is not None:
        text += f"   {_ratio(line, line['ratio'])} of {line['reference']}"
        if line["part"] == "training" and line["low"] is not None:
            text += f" ({_ratio(line, line['low'])} to {_ratio(line, line['high'])})"
    if line["limit"] is not None:
        text += f"   budget {_budget(line)}: {_verdict(line)}"
    return text + (f"   ({line['note']})" if line["note"] else "")


def _ratio(line: dict[str, Any], ratio: float) -> str:
    """What training is slowed down by, in percent; any other ratio as it is."""
    return f"{100 * (ratio - _whole(line)):+.3f} %" if line["part"] == "training" else f"{ratio:.3g}"


def _whole(line: dict[str, Any]) -> float:
    """1 where the ratio is one of two loops, 0 where it is of a part of a loop."""
    return 1.0 if line["low"] is not None else 0.0


def _budget(line: dict[str, Any]) -> str:
    return _ratio(line, line["limit"]) if line["judged"] == "ratio" else f"{line['limit']:g} {line['unit']}"


def _verdict(line: dict[str, Any]) -> str:
    value = line["ratio"] if line["judged"] == "ratio" else line["median"]
    times = (value - _whole(line)) / (line["limit"] - _whole(line)) if line["part"] == "training" else line["excess"]
    noisy = line["part"] == "training" and line["low"] is not None and line["low"] <= line["limit"] <= line["high"]
    return ("held" if line["held"] else f"missed by {times:.2g}x") + (", within the noise" if noisy else "")


def _processor() -> str | None:
    try:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return models[0].partition(":")[2].strip()
    except (OSError, IndexError):
        return platform.processor() or None


if __name__ == "__main__":
    sys.exit(main())
