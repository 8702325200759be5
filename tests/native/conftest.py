"""Programs that run device source on the host: built with g++, and run until they say that every check passed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GCC = shutil.which("g++")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-function")


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., None]:
    """Builds and runs a source of this folder, given its name and the macros to define."""
    if GCC is None:
        pytest.skip("g++ is not installed")

    def run(name: str, **macros: int) -> None:
        program = tmp_path / name
        folders = [f"-I{ROOT / 'csrc' / folder}" for folder in ("include", "cuda")]
        # No contraction: values are compared bit for bit.
        flags = ["-std=c++17", "-O1", "-ffp-contract=off", *WARNINGS, *(f"-D{key}={value}" for key, value in macros.items())]
        command = [str(GCC), *flags, *folders, str(ROOT / "tests" / "native" / f"{name}.cpp"), "-o", str(program)]
        built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert built.returncode == 0, built.stderr[-4000:]
        finished = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
        assert finished.returncode == 0, finished.stdout[-4000:]
        assert "every check passed" in finished.stdout

    return run
