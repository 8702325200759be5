"""The native CPU kernels under the address and undefined-behaviour sanitizers: `make sanitize`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = Path(__file__).with_name("sanitizer_checks.py")
LIMIT = 3600  # the templates of attention take minutes to compile, with sanitizers more
GCC = shutil.which("g++")

pytestmark = [
    pytest.mark.sanitizer,
    pytest.mark.timeout(2 * LIMIT),
    pytest.mark.skipif(GCC is None, reason="g++ is not installed"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed"),
]


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    nice = ["nice", "-n", "19", *map(str, command)]
    variables = {**os.environ, **environment}
    return subprocess.run(nice, env=variables, capture_output=True, text=True, check=False, timeout=LIMIT)


def library(name: str) -> str:
    return subprocess.check_output([str(GCC), f"-print-file-name={name}"], text=True).strip()


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `_cpu` with sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    configure = ["-DJEPA_KERNELS_SANITIZE=ON", f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_CXX_COMPILER={GCC}"]
    for command in (["cmake", "-S", ROOT, "-B", folder, *configure], ["cmake", "--build", folder, "--parallel", "2"]):
        finished = run(*command)
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-5000:]
    return next(folder.glob("_cpu*.so"))


def sanitized(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # Python itself leaks by design, so leaks are not looked for.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    # libasan takes over the C++ runtime's functions only where that is loaded at the start.
    preload = f"{library('libasan.so')} {library('libstdc++.so')}"
    return run(sys.executable, *arguments, LD_PRELOAD=preload, **options)


def test_every_operator_at_every_level(module):
    finished = sanitized(CHECKS, module)
    assert finished.returncode == 0, finished.stdout + finished.stderr[-8000:]
    assert "every check passed" in finished.stdout


def test_an_overrun_would_be_reported(module):
    """A size that lies about its allocation: without this the test above would also pass with no sanitizer at work."""
    overrun = f"""
import sys; sys.path.insert(0, {str(CHECKS.parent)!r})
import torch, sanitizer_checks
sanitizer_checks.load({str(module)!r})
from jepa_kernels import _native
short, long = torch.zeros(8), torch.zeros(4096)
tensors = _native.cpu().EmaTensors([(short.data_ptr(), 0, 4096)], [(long.data_ptr(), 0, 4096)], [None])
tensors.update(0.5, False, 0, 1)
"""
    finished = sanitized("-c", overrun)
    assert finished.returncode != 0
    assert "heap-buffer-overflow" in finished.stderr, finished.stderr[-3000:]
