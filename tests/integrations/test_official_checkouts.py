"""The official repositories themselves, where JEPA_KERNELS_OFFICIAL names a folder with checkouts `vjepa2`, `jepa`, `ijepa`.

Each test runs in a process of its own: every one of these repositories calls its package `src`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = os.environ.get("JEPA_KERNELS_OFFICIAL")
WORKER = Path(__file__).with_name("official_worker.py")

pytestmark = pytest.mark.skipif(ROOT is None, reason="JEPA_KERNELS_OFFICIAL names no folder of checkouts")


def run(repository: str, *arguments: str) -> str:
    checkout = Path(str(ROOT)) / repository
    if not checkout.is_dir():
        pytest.skip(f"no checkout of {repository}")
    environment = {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, str(WORKER), *arguments]
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize("repository", ["vjepa2", "jepa", "ijepa"])
def test_a_training_step_gives_the_loss_and_gradients_of_the_unpatched_code(repository):
    assert "equal" in run(repository, repository)


def test_vjepa2s_ac_predictor():
    assert "equal" in run("vjepa2", "vjepa2-ac")


def test_vjepa2s_own_model_tests_pass_while_patched():
    assert "passed" in run("vjepa2", "own-tests", "tests/models")
