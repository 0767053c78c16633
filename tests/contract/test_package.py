"""What is shipped: found from a wheel and from an editable install, and generated files are what they should be."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from paddle_exporter.reference import generated

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def test_wheel_carries_package_types_and_assets(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in (
        "paddle_exporter/py.typed",
        "paddle_exporter/hooks/hapi.py",
        "paddle_exporter/assets/alerts/rules/liveness.yml",
        "paddle_exporter/assets/alerts/alertmanager.yml",
        "paddle_exporter/assets/compose/prometheus/prometheus.yml",
        "paddle_exporter/assets/dashboards/README.md",
    ):
        assert wanted in names
    assert not [name for name in names if name.startswith(("tests/", "exporter/"))]


def test_assets_are_found_from_an_installed_wheel(wheel, tmp_path):
    # Its own environment with the wheel only; prometheus_client is not needed to find a file.
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for name in ("alerts/rules", "dashboards", "compose/prometheus/prometheus.yml"):
        found = subprocess.run(
            [tmp_path / "env" / "bin" / "paddle-exporter", "assets", name],
            check=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        ).stdout.strip()
        assert Path(found).exists()
        assert str(tmp_path) in found, "it must come from the wheel, not from a checkout"


def test_assets_are_found_from_an_editable_install():
    found = subprocess.run(
        [sys.executable, "-m", "paddle_exporter.cli", "assets", "alerts/rules"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert Path(found) == ROOT / "alerts" / "rules"


def test_an_asset_that_did_not_come_is_a_clear_error():
    answer = subprocess.run(
        [sys.executable, "-m", "paddle_exporter.cli", "assets", "nothing/here"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1
    assert "nothing/here" in answer.stderr


@pytest.mark.parametrize("path", ["METRICS.md", "README.md", "README.zh-CN.md"])
def test_generated_files_are_up_to_date(path):
    expected = dict(generated(ROOT))
    assert (ROOT / path).read_text(encoding="utf-8") == expected[ROOT / path], "run: make generate"
