"""The source of the CUDA attention's blocks, run on the host thread by thread and compared with float64."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from jepa_kernels.ops.masked_attention_cuda import HEAD_DIMS

ROOT = Path(__file__).resolve().parents[2]
GCC = shutil.which("g++")


@pytest.mark.skipif(GCC is None, reason="g++ is not installed")
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_blocks_equal_the_definition(head_dim, tmp_path):
    program = tmp_path / "block"
    folders = [f"-I{ROOT / 'csrc' / each}" for each in ("include", "cuda")]
    source = ROOT / "tests" / "native" / "masked_attention_block.cpp"
    # No contraction: rotated values are compared bit for bit.
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
    command = [GCC, *flags, f"-DHEAD_DIM={head_dim}", *folders, str(source), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr[-4000:]
    finished = subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stdout
    assert "every check passed" in finished.stdout
