"""Compile Triton kernels for GPUs that are not here, and read what the machine code needs: registers, stack, shared memory."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 86, 90, 100, 120)
# Bytes of shared memory that one block may use (CUDA C++ programming guide, compute capabilities).
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
CUOBJDUMP = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Resources:
    """Static needs of one compiled kernel. Registers a thread; the rest in bytes. Spilled registers lie on the stack."""

    registers: int
    stack: int
    local: int
    shared: int
    tensor_core: dict[str, int]  # instruction family (wgmma, tcgen05, mma) -> count in the PTX


def compile_case(case, architecture: int, **more_options):
    """The compiled kernel of an AotCase for an architecture such as 90. more_options go to the compiler."""
    signature = {name: case.signature.get(name, "constexpr") for name in case.kernel.arg_names}
    positions = {name: (index,) for index, name in enumerate(case.kernel.arg_names)}
    source = ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs={positions[name]: value for name, value in case.constants.items()},
        attrs={positions[name]: [["tt.divisibility", 16]] for name in case.divisible_by_16},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.max_registers}
    options |= {"enable_fp_fusion": True, **more_options}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resources(compiled) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    families = re.findall(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\b", compiled.asm["ptx"])
    return Resources(
        registers=usage["REG"],
        stack=usage["STACK"],
        local=usage["LOCAL"],
        shared=usage["SHARED"] + compiled.metadata.shared,
        tensor_core=dict(Counter(family.partition(".")[0] for family in families)),
    )
