"""Blocks of a multiprocessor: against NVIDIA's own occupancy calculator, and against values worked out by hand."""

from __future__ import annotations

import importlib.util
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from jepa_kernels.static.occupancy import ARCHITECTURES, MULTIPROCESSORS, occupancy

LIMIT_BITS = {"warps": 1, "registers": 2, "shared memory": 4, "blocks": 8}


def calculator_header() -> Path | None:
    """The folder of cuda_occupancy.h: Triton's package has it, and the CUDA toolkit."""
    found = importlib.util.find_spec("triton")
    folders = [Path("/usr/local/cuda/include")]
    if found is not None and found.submodule_search_locations:
        folders.insert(0, Path(found.submodule_search_locations[0]) / "backends" / "nvidia" / "include")
    return next((folder for folder in folders if (folder / "cuda_occupancy.h").is_file()), None)


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "warps", "blocks", "limits"),
    [
        (80, 32, 0, 4, 16, ("warps", "registers")),  # full: 64 warps of 32 registers
        (80, 33, 0, 4, 12, ("registers",)),  # rounded up to 40 a thread: 1280 a warp, 12 warps a partition
        (80, 255, 0, 8, 1, ("registers",)),
        (86, 16, 0, 1, 16, ("blocks",)),  # one-warp blocks: 16 of them leave two thirds of the 48 warps empty
        (90, 128, 113 * 1024, 8, 2, ("registers", "shared memory")),  # 2 x (113 + 1) KB are all of 228
        (90, 128, 114 * 1024, 8, 1, ("shared memory",)),
        (90, 168, 0, 12, 1, ("registers",)),  # three warpgroups
        (100, 24, 227 * 1024, 4, 1, ("shared memory",)),
        (120, 40, 0, 8, 6, ("warps", "registers")),
        (120, 24, 99 * 1024 + 1, 4, 0, ("shared memory",)),  # more than a block may have
        (80, 255, 0, 9, 0, ("registers",)),  # more than a block may have: 12 warps of 8192
    ],
)
def test_known_values(architecture, registers, shared, warps, blocks, limits):
    found = occupancy(architecture, registers, shared, warps)
    assert (found.blocks, found.limits) == (blocks, limits)
    assert found.warps == blocks * warps and found.most_warps == MULTIPROCESSORS[architecture].warps


def test_tensor_memory_limits_too():
    assert occupancy(100, 64, 1024, 4, tensor_columns=128).limits == ("tensor memory",)
    assert occupancy(100, 64, 1024, 4, tensor_columns=128).blocks == 4
    assert occupancy(100, 64, 1024, 4, tensor_columns=512).blocks == 1


@pytest.fixture(scope="module")
def calculator(tmp_path_factory):
    header, compiler = calculator_header(), shutil.which("g++")
    if header is None or compiler is None:
        pytest.skip("needs g++ and cuda_occupancy.h, which Triton's package and the CUDA toolkit bring")
    program = tmp_path_factory.mktemp("occupancy") / "calculator"
    source = Path(__file__).with_name("calculator.cpp")
    subprocess.run([compiler, "-std=c++17", f"-I{header}", str(source), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_calculator_of_the_cuda_toolkit(calculator, architecture):
    hardware = MULTIPROCESSORS[architecture]
    draw = random.Random(architecture)
    most = hardware.shared_block
    needs = [
        (draw.randint(1, 255), draw.choice((0, draw.randint(0, 8192), draw.randint(0, most + 512), most)), draw.randint(1, 32))
        for _ in range(4000)
    ]
    device = f"{architecture // 10} {architecture % 10} {hardware.warps} {hardware.shared} {hardware.shared_block}"
    lines = "\n".join(f"{device} {registers} {shared} {warps}" for registers, shared, warps in needs)
    answer = subprocess.run([str(calculator)], input=lines, capture_output=True, text=True, check=True).stdout.split("\n")
    for need, line in zip(needs, answer, strict=False):
        blocks, bits = map(int, line.split())
        found = occupancy(architecture, *need)
        assert found.blocks == blocks, (need, found)
        assert sum(LIMIT_BITS[name] for name in found.limits) == bits, (need, found)
    assert len(answer) == len(needs) + 1  # and the end of the last line
