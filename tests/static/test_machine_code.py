"""Instructions and needs are read from disassembly and cubins as they are."""

from __future__ import annotations

import subprocess

import pytest

from jepa_kernels.static import cuda_module, machine_code, tools
from jepa_kernels.static.errors import ToolMissingError

DISASSEMBLY = """
        .headerflags    @"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                          /* 0x00000a00ff017b82 */
                                                                                   /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;       /* 0x0000000402040981 */
        /*0020*/                   LDG.E R4, desc[UR4][R2.64] ;                    /* 0x0000000402040981 */
        /*0030*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;                /* 0x0000000402040981 */
        /*0040*/               @P1 LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64] ;    /* 0x0000000402040981 */
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], !UPT ; /* 0x00e0000008187df0 */
        /*0060*/              @UP0 UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR14] ;    /* 0x00ff1606040075ea */
        /*0070*/                   HMMA.16816.F32.BF16 R24, R4, R8, R24 ;          /* 0x000000080418723c */
        /*0080*/                   HMMA.16816.F32.BF16 R28, R4, R8, R28 ;          /* 0x000000080418723c */
        /*0090*/                   STL.64 [R1+0x8], R2 ;                           /* 0x0000080201007387 */
        /*00a0*/                   LDL.64 R2, [R1+0x8] ;                           /* 0x0000080001027983 */
        /*00b0*/                   FFMA R2, R3, R4, R5 ;                           /* 0x0000000403027223 */
        /*10a00*/                  EXIT ;                                          /* 0x000000000000794d */
"""

SOURCE = """
__global__ void __launch_bounds__(96) exchange(float* x) {
  __shared__ float stored[300];
  stored[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = stored[95 - threadIdx.x];
}
__global__ void indexed(float* x, int i) {
  float values[64] = {};
  for (int k = 0; k < 100; ++k) values[int(x[k]) & 63] += x[k + i];
  x[0] = values[i & 63];
}
"""


def test_counts_instructions_where_they_stand():
    found = machine_code.count(DISASSEMBLY)
    assert found.total == 13
    assert found.matrix == {"HGMMA": 1, "UTCHMMA": 1, "HMMA": 2}
    assert found.local_memory == 2
    assert found.global_loads == {128: 2, 32: 1, 16: 1}


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [("LDG.E", 32), ("LDG.E.U8.CONSTANT", 8), ("LDG.E.S16", 16), ("LDG.E.64", 64), ("LDG.E.ENL2.256", 256), ("LDGSTS.E", 32)],
)
def test_width_of_a_load(opcode, bits):
    assert machine_code.count(f"        /*0000*/   {opcode} R0, [R2] ;").global_loads == {bits: 1}


@pytest.mark.skipif(tools.find("nvcc") is None or tools.find("cuobjdump") is None, reason="needs nvcc and cuobjdump")
@pytest.mark.parametrize("architecture", [80, 90, 120])
def test_reads_a_cubin(architecture, tmp_path):
    """1,200 bytes of shared memory on every architecture, whether its cubin counts the system's kilobyte or not."""
    source, cubin = tmp_path / "kernels.cu", tmp_path / "kernels.cubin"
    source.write_text(SOURCE)
    subprocess.run([tools.require("nvcc"), f"-arch=sm_{architecture}", "-cubin", "-o", str(cubin), str(source)], check=True)
    used = machine_code.usage(cubin.read_bytes(), architecture)
    exchange, indexed = (next(needs for name, needs in used.items() if kernel in name) for kernel in ("exchange", "indexed"))
    assert exchange.shared == 1200 and exchange.stack == exchange.local == 0 and 0 < exchange.registers < 32
    assert indexed.shared == 0 and indexed.stack == 256
    code = machine_code.instructions(cubin.read_bytes())
    assert set(code) == set(used)
    assert next(found for name, found in code.items() if "indexed" in name).local_memory > 0
    assert next(found for name, found in code.items() if "exchange" in name).local_memory == 0


def test_a_tool_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setattr(tools, "find", lambda name: None)
    with pytest.raises(ToolMissingError, match=r"cuobjdump was not found.*jepa-kernels\[triton\].*CUDA_HOME"):
        machine_code.usage(b"", 90)


@pytest.mark.skipif(tools.find("cuobjdump") is None, reason="needs cuobjdump")
def test_a_tool_that_fails_says_why():
    with pytest.raises(ToolMissingError, match="cuobjdump .* failed with code"):
        machine_code.usage(b"not machine code", 90)


def test_finds_kernels_in_a_built_module(tmp_path):
    """By source file; each architecture gets the newest code that it runs: sm_86 that of sm_80, and sm_120 nothing of sm_90a."""
    if tools.find("nvcc") is None or tools.find("cuobjdump") is None:
        pytest.skip("needs nvcc and cuobjdump")
    source, module = tmp_path / "toy_operator.cu", tmp_path / "module.so"
    pair = "template <typename T> struct Pair { T x; };"
    paired = f"{pair} template <typename T> __global__ void paired(Pair<T> p, T* y) {{ *y = p.x; }}"
    use = "void use() { exchange<<<1, 96>>>(nullptr); paired<int><<<1, 1>>>({}, nullptr); }"
    source.write_text(f"namespace jepa {{ namespace {{ {SOURCE} {paired} }} {use} }}")
    targets = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a"]
    command = [tools.require("nvcc"), *targets, "-Xcompiler=-fPIC", "-shared", "-o", str(module), str(source)]
    subprocess.run(command, check=True)
    for architecture in (80, 86, 90):
        kernels = cuda_module.kernels(module, "toy_operator", architecture)
        exchange = next(kernel for kernel in kernels if "exchange" in kernel.name)
        assert exchange.source == "toy_operator" and exchange.threads == 96 and exchange.usage.shared == 1200
        assert exchange.instructions.global_loads == {32: 1}
        assert tools.find("c++filt") is None or "paired<int>" in {kernel.name for kernel in kernels}  # and no parameters
    assert cuda_module.kernels(module, "toy_operator", 120) == []
    assert cuda_module.kernels(module, "other", 90) == []
