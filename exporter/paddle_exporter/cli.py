"""The command ``paddle-exporter``: one command, a few verbs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .version import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 failed, 2 not understood."""
    parser = argparse.ArgumentParser(
        prog="paddle-exporter", description="Prometheus exporter for PaddlePaddle training"
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    demo = verbs.add_parser("demo", help="train a small real model on this machine and watch it")
    demo.add_argument("--ranks", type=int, default=2, help="how many ranks train (default 2)")
    demo.add_argument("--fault", choices=("nan", "crash", "hang"), help="what goes wrong in one rank")
    demo.add_argument("--report", type=Path, help="write the summary to this file, as JSON")
    demo.add_argument("--keep", action="store_true", help="leave Prometheus and Alertmanager running at the end")

    assets = verbs.add_parser("assets", help="print where rules, dashboards and configuration were installed")
    assets.add_argument("name", nargs="?", default="alerts", help="alerts, dashboards, compose, or a path in them")

    generate = verbs.add_parser("generate", help="write the generated files of a checkout")
    generate.add_argument("--root", type=Path, default=Path.cwd(), help="the checkout (default: this directory)")
    generate.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")

    chosen = parser.parse_args(arguments)
    return {"demo": _demo, "assets": _assets, "generate": _generate}[chosen.verb](chosen)


def _demo(chosen: argparse.Namespace) -> int:
    try:
        from .demo.command import run_demo
    except ImportError as error:
        print(f"the demo needs more than the exporter ({error}): pip install 'paddle-exporter[demo]'", file=sys.stderr)
        return 1
    return run_demo(ranks=chosen.ranks, fault=chosen.fault, report=chosen.report, keep=chosen.keep)


def _assets(chosen: argparse.Namespace) -> int:
    from .assets import asset

    try:
        print(asset(chosen.name))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _generate(chosen: argparse.Namespace) -> int:
    from .reference import generated

    status = 0
    for path, text in generated(chosen.root):
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        if current == text:
            continue
        if chosen.check:
            print(f"{path} is not what `make generate` writes", file=sys.stderr)
            status = 1
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return status


if __name__ == "__main__":
    sys.exit(main())
