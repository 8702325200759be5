"""Whole commands over a compiled libnvidia-ml.so.1, found through LD_LIBRARY_PATH as a driver's would be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")

# Two windows of a load of 1 ms, on the real clock and through the real file: what the harness does on a GPU.
WINDOW = """
import json, time
from jepa_kernels.bench.energy.errors import Unavailable
from jepa_kernels.bench.energy.loads import HostLoad
from jepa_kernels.bench.energy.meters import board_meters, find_period
from jepa_kernels.bench.energy.window import run_window
meters = board_meters("11111111-2222-3333-4444-555555555555")
find_period(meters)
found = {"source": meters.main and meters.main.source, "reason": meters.reason, "flags": meters.flags,
         "update_s": meters.update_s, "error": None, "watts": None}
try:
    if meters.main is not None:
        found["watts"] = run_window(meters, HostLoad(lambda: time.sleep(1e-3), 3), window_s=1.0).watts
except Unavailable as error:
    found["error"] = error.flag
print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)]
    subprocess.run(command, check=True)
    return folder


def run(library: Path, *command: str, **settings: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
    environment |= {f"FAKE_NVML_{name}": str(value) for name, value in settings.items()}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=120)


def findings(library: Path, *arguments: str, **settings: int) -> tuple[int, dict[str, dict[str, Any]]]:
    done = run(library, "-m", "jepa_kernels.cli", "doctor", "--json", *arguments, **settings)
    loaded = json.loads(done.stdout)
    return done.returncode, {f"{f['group']} {f['name']}": f for f in loaded["findings"]}


def test_doctor_tells_the_board_and_its_counter(library: Path) -> None:
    code, found = findings(library, "--require", "energy")
    assert code == 0
    assert found["energy board 0"]["status"] == "ok"
    assert "NVML counter of GPU board, refreshed every" in found["energy board 0"]["value"]
    assert "Pretended GPU, driver 999.01, limit 700 W" in found["gpu board 0"]["value"]


@pytest.mark.parametrize(
    ("settings", "name", "status", "words"),
    [
        ({"INIT": 18}, "energy GPU boards", "missing", "reboot"),
        ({"INIT": 9}, "energy GPU boards", "missing", "modprobe"),
        ({"ENERGY": 4}, "energy board 0", "limited", "administrator"),
        ({"MIG": 1}, "energy board 0", "missing", "cannot split"),
        ({"ENERGY": 3, "POWER": 3}, "energy board 0", "missing", "Volta"),
    ],
)
def test_doctor_names_what_is_wrong(
    library: Path, settings: dict[str, int], name: str, status: str, words: str
) -> None:
    _, found = findings(library, **settings)
    assert found[name]["status"] == status
    assert words in f"{found[name]['reason']} {found[name]['fix']}"


def window(library: Path, **settings: int) -> dict[str, Any]:
    done = run(library, "-c", WINDOW, **settings)
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def test_window_of_the_compiled_counter(library: Path) -> None:
    found = window(library)
    assert found["source"] == "nvml-counter" and found["update_s"] == pytest.approx(0.1, rel=0.5)
    assert found["watts"] == pytest.approx(300.0, rel=0.2)  # real time: a busy machine may delay a reading


def test_permission_reset_mig_and_mismatch_reach_the_window(library: Path) -> None:
    denied = window(library, ENERGY=4)
    assert denied["source"] == "nvml-power" and denied["flags"] == ["power_integral"]
    assert denied["watts"] == pytest.approx(300.0, rel=0.01)
    assert window(library, MIG=1)["flags"] == ["mig"]
    assert "reboot" in window(library, INIT=18)["reason"]


def test_reset_while_a_window_runs_is_flagged(library: Path) -> None:
    found = window(library, RESET=1)
    assert found["watts"] is None
    assert found["error"] == "counter_reset" or "went backwards" in (found["reason"] or "")
