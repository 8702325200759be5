"""The source of the CUDA attention's blocks, run on the host thread by thread and compared with float64."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from jepa_kernels.ops.masked_attention_cuda import HEAD_DIMS

ROOT = Path(__file__).resolve().parents[2]
GCC = shutil.which("g++")


def run_program(folder: Path, head_dim: int, *options: str) -> subprocess.CompletedProcess[str]:
    program = folder / "block"
    folders = [f"-I{ROOT / 'csrc' / each}" for each in ("include", "cuda")]
    source = ROOT / "tests" / "native" / "masked_attention_block.cpp"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
    command = [GCC, *flags, f"-DHEAD_DIM={head_dim}", *options, *folders, str(source), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr[-4000:]
    return subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.skipif(GCC is None, reason="g++ is not installed")
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_blocks_equal_the_definition(head_dim, tmp_path):
    finished = run_program(tmp_path, head_dim)
    assert finished.returncode == 0, finished.stdout
    assert "every check passed" in finished.stdout
