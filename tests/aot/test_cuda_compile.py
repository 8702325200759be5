"""Every CUDA source compiles for every architecture, and no kernel spills registers or keeps arrays on a stack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jepa_kernels.static import tools

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
BUILT = ("80", "90a", "100", "120")  # what the module holds machine code for
OTHERS = ("86", "89")  # those run the code for 8.0; compiled for them by itself, it does not spill either
NVCC = shutil.which("nvcc") or shutil.which(f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc")


def test_there_are_cuda_sources():
    assert SOURCES


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architectures", [BUILT, pytest.param(OTHERS, marks=pytest.mark.aot_full)], ids=["built", "others"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spills(source, architectures, tmp_path):
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    options = ["-std=c++17", "-O3", "-Xptxas=-v", "--threads=2", f"-I{ROOT / 'csrc' / 'include'}", "-Xcompiler=-fPIC"]
    command = [NVCC, *options, *targets, "-c", str(source), "-o", str(tmp_path / "object.o")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert finished.returncode == 0, finished.stderr[-4000:]
    report = finished.stdout + finished.stderr
    compiled = set(re.findall(r"Compiling entry function '\S.*?' for '(sm_\w+)'", report))
    assert compiled == {f"sm_{name}" for name in architectures}
    usage = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert usage
    spilled = [entry for entry in usage if entry != ("0", "0", "0")]
    assert not spilled, f"{len(spilled)} of {len(usage)} kernels use the stack: {spilled[:5]}"
    # Where the assembler cannot prove that registers and branches allow it, products of a warpgroup wait for each other.
    serialized = re.findall(r".*wgmma.mma_async instructions are serialized.*", report)
    assert not serialized, serialized[:3]


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize(
    ("source", "architecture", "instructions"),
    [
        ("patch_embed.cu", "80", ("mma.sync.aligned.m16n8k16", "ldmatrix.sync", "cp.async.cg.shared.global")),
        ("patch_embed_sm90.cu", "90a", ("wgmma.mma_async.sync.aligned.m64n256k16", "cp.async.bulk.tensor.2d", "setmaxnreg")),
        ("patch_embed_sm90.cu", "100", ("trap;",)),  # what the launcher never starts there
    ],
)
def test_kernels_use_the_instructions_they_are_meant_to(source, architecture, instructions, tmp_path):
    ptx = tmp_path / "kernel.ptx"
    target = ["-ptx", f"-arch=compute_{architecture}", f"-I{ROOT / 'csrc' / 'include'}", "-o", str(ptx)]
    command = [NVCC, "-std=c++17", *target, str(ROOT / "csrc" / "cuda" / source)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr[-4000:]
    text = ptx.read_text(encoding="utf-8")
    kernels = [entry for entry in text.split(".entry")[1:] if "table_kernel" not in entry.split("(")[0]]
    assert len(kernels) >= 6  # pixels of bytes, 16 and 32 bits; products in bfloat16 and float16
    for kernel in kernels:
        missing = [instruction for instruction in instructions if instruction not in kernel]
        assert not missing, (kernel.split("(")[0], missing)


# What each kernel of the attention holds in its machine code: asynchronous copies, matrix loads, products over 16 channels.
ATTENTION = ("LDGSTS.E.BYPASS.128", "LDSM.16.M88.4", "LDSM.16.MT88.4", "HMMA.16816.F32", "MUFU.EX2")


@pytest.mark.skipif(NVCC is None or tools.find("cuobjdump") is None, reason="nvcc or cuobjdump is not installed")
@pytest.mark.parametrize("architecture", ["80", "120"])
def test_attention_runs_on_tensor_cores(architecture, tmp_path):
    binary = tmp_path / "kernel.cubin"
    target = ["-cubin", f"-arch=sm_{architecture}", f"-I{ROOT / 'csrc' / 'include'}", "-o", str(binary)]
    command = [NVCC, "-std=c++17", "-O3", *target, str(ROOT / "csrc" / "cuda" / "masked_attention.cu")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert finished.returncode == 0, finished.stderr[-4000:]
    listing = tools.output("cuobjdump", "-sass", str(binary))
    kernels = [entry.partition("\n")[::2] for entry in listing.split("Function : ")[1:]]
    kernels = [(name, code) for name, code in kernels if "attention_kernel" in name]
    assert len(kernels) == 16  # four head dims, two types, two sizes of blocks
    for name, code in kernels:
        head_dim = int(re.findall(r"AttentionShapeILi(\d+)", name)[0])
        products = ATTENTION + (("HMMA.1688.F32",) if head_dim % 16 else ())  # the last eight channels of 88
        assert not [instruction for instruction in products if instruction not in code], name
        # No product is wasted on padded channels: keys times channels of both products, a warp and step.
        rows, keys = (32, 32 if head_dim > 32 else 64) if f"Li{head_dim}ELi2" in name else (16, 64)
        wide, narrow = code.count("HMMA.16816"), code.count("HMMA.1688.")
        assert (2048 * wide + 1024 * narrow) % (2 * rows * keys * head_dim) == 0, name


@pytest.mark.skipif(NVCC is None or tools.find("cuobjdump") is None, reason="nvcc or cuobjdump is not installed")
def test_attention_of_warpgroups_multiplies_without_padding_but_88(tmp_path):
    binary = tmp_path / "kernel.cubin"
    target = ["-cubin", "-gencode=arch=compute_90a,code=sm_90a", f"-I{ROOT / 'csrc' / 'include'}", "-o", str(binary)]
    command = [NVCC, "-std=c++17", "-O3", *target, str(ROOT / "csrc" / "cuda" / "masked_attention_sm90.cu")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert finished.returncode == 0, finished.stderr[-4000:]
    listing = tools.output("cuobjdump", "-sass", str(binary))
    kernels = [entry.partition("\n")[::2] for entry in listing.split("Function : ")[1:]]
    assert len(kernels) == 16  # four head dims, two types, two sizes of blocks
    for name, code in kernels:
        head_dim, keys = map(int, re.findall(r"WarpgroupShapeILi(\d+)ELi\d+ELi(\d+)", name)[0])
        # The copy engine, the hand-over of registers, rotated queries by way of shared memory; no product of a single warp.
        wanted = ("UTMALDG.4D", "SYNCS", "USETMAXREG", "LDSM.16.M88.4", "MUFU.EX2")
        assert not [instruction for instruction in wanted if instruction not in code], name
        assert "HMMA" not in code, name
        # A tile's softmax runs beside the product of the sums before: most of a thread's exponentials (two rows of a quarter
        # of the keys) stand between the wait for its scores and the wait for those sums.
        beside = code.partition("WARPGROUP.DEPBAR.LE gsb0, 0x1 ")[2].partition("WARPGROUP.DEPBAR.LE gsb0, 0x0 ")[0]
        assert beside.count("MUFU.EX2") >= 3 * keys // 8, name
        columns = [int(n) for n in re.findall(r"HGMMA\.64x(\d+)x16\.F32", code)]
        width = 96 if head_dim == 88 else head_dim
        # Scores of the first tile and of a further one; sums of an earlier tile and of the last.
        scores, sums = 2 * keys * width // 16, 2 * keys * width // 16
        assert sum(columns) == scores + sums, (name, columns)
