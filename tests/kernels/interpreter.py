"""Runs a file of checks in a process of its own with Triton's interpreter on, where kernels run on CPU tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).parent / "interpreted"


def run_interpreted(name: str, timeout: float = 300.0) -> None:
    """Runs tests/kernels/interpreted/<name>.py under pytest with TRITON_INTERPRET=1 and fails with its output."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(CHECKS / f"{name}.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-2000:]
    assert " passed" in finished.stdout, finished.stdout
