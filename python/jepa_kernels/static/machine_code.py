"""Read a cubin: what its kernels need and which instructions they consist of."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from . import tools
from .occupancy import SHARED_RESERVED

# Matrix opcodes: HMMA and its kin are mma.sync of one warp, HGMMA is wgmma of four, UTCHMMA tcgen05.mma into tensor memory.
MATRIX = "MMA"
SPILL = ("LDL", "STL")
GLOBAL_LOADS = ("LDG", "LDGSTS")  # the second goes on to shared memory past the registers (cp.async)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_FUNCTION = re.compile(r"^\s*Function\s*:\s*(\S+)", re.MULTILINE)
_USAGE = re.compile(r"^ Function (\S+):\n((?:  .*\n?)+)", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """Registers a thread; bytes of stack and local memory a thread, where spilled registers lie; static shared bytes a block,
    without what the system reserves."""

    registers: int
    stack: int
    local: int
    shared: int


@dataclass(frozen=True)
class Instructions:
    """Counts in the machine code: all; matrix instructions by opcode; loads and stores of spilled registers and of other stack
    memory; loads of global memory by bits a thread."""

    total: int
    matrix: dict[str, int]
    local_memory: int
    global_loads: dict[int, int]


@contextmanager
def _stored(cubin: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        yield file.name


def usage(cubin: bytes, architecture: int) -> dict[str, Usage]:
    """Kernel -> what it needs."""
    with _stored(cubin) as path:
        text = tools.output("cuobjdump", "--dump-resource-usage", path)
    kernels = {}
    for name, line in _USAGE.findall(text):
        found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", line)}
        shared = found["SHARED"]
        if architecture >= 90 and shared:  # their cubins count the system's kilobyte as the block's own
            shared -= SHARED_RESERVED
        kernels[name] = Usage(found["REG"], found["STACK"], found["LOCAL"], shared)
    return kernels


def instructions(cubin: bytes) -> dict[str, Instructions]:
    """Kernel -> its instructions, counted where they stand: one in a loop counts once."""
    with _stored(cubin) as path:
        text = tools.output("cuobjdump", "--dump-sass", path)
    pieces = _FUNCTION.split(text)[1:]
    return {name: count(body) for name, body in zip(pieces[::2], pieces[1::2], strict=True)}


def count(disassembly: str) -> Instructions:
    """The counts of one kernel's disassembly."""
    opcodes = Counter(_INSTRUCTION.findall(disassembly))
    matrix: Counter[str] = Counter()
    loads: Counter[int] = Counter()
    local_memory = 0
    for opcode, number in opcodes.items():
        family = opcode.partition(".")[0]
        if family.endswith(MATRIX):
            matrix[family] += number
        if family in SPILL:
            local_memory += number
        if family in GLOBAL_LOADS:
            loads[_bits(opcode)] += number
    return Instructions(opcodes.total(), dict(matrix), local_memory, dict(sorted(loads.items(), reverse=True)))


def _bits(opcode: str) -> int:
    """Width of a load, of which the opcode names all but 32 bits."""
    width = re.search(r"\.(?:[US]?(8|16)|(64|128|256))(?=\.|$)", opcode)
    return int(width[1] or width[2]) if width else 32
