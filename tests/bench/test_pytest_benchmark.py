"""The suite under pytest-benchmark: its JSON carries work and energy, and pytest-benchmark's `compare` loads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=cwd, env=environment)


def test_json_has_energy_and_is_loaded_by_compare(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = python(
        "pytest", "benchmarks/test_ema_update.py", "-p", "no:cacheprovider", "-k", "400-small-tensors and torch-foreach-lerp",
        "--jepa-device", "cpu", "--benchmark-json", str(out), "--benchmark-max-time", "0.05", cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (entry,) = json.loads(out.read_text())["benchmarks"]
    found = entry["extra_info"]["jepa"]
    assert (found["provider"], found["work"]["samples"]) == ("torch-foreach-lerp", 1)
    energy = found["energy"]
    assert energy["joules_per_call"] is not None or energy["reason"]
    compared = python("pytest_benchmark", "compare", str(out), "--columns=median,rounds", cwd=tmp_path)
    assert compared.returncode == 0 and "torch-foreach-lerp" in compared.stdout, compared.stderr
