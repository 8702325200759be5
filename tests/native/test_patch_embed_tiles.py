"""The index arithmetic of the CUDA patch embedding, run on the host: fragments, swizzle, banks, columns, alignment."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GCC = shutil.which("g++")


@pytest.mark.skipif(GCC is None, reason="g++ is not installed")
def test_every_value_of_a_tile_finds_its_place(tmp_path):
    program = tmp_path / "tiles"
    folders = [f"-I{ROOT / 'csrc' / folder}" for folder in ("include", "cuda")]
    source = ROOT / "tests" / "native" / "patch_embed_tiles.cpp"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
    command = [GCC, "-std=c++17", "-O1", *warnings, *folders, str(source), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr[-4000:]
    finished = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stdout
    assert "every check passed" in finished.stdout
