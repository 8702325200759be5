"""How many blocks of a kernel fit on one multiprocessor, and which resource says so.

The arithmetic is that of NVIDIA's occupancy calculator, cuda_occupancy.h of the CUDA toolkit; the sizes are those of the CUDA C++
programming guide, "Compute capabilities", technical specifications. Tensor memory, which the calculator leaves out: PTX ISA,
tcgen05.alloc (512 columns a multiprocessor; a block waits until its columns are free).
"""

from __future__ import annotations

from dataclasses import dataclass

WARP_THREADS = 32
REGISTERS = 65536  # 32-bit, of a multiprocessor and the most of one block
REGISTERS_UNIT = 256  # a warp takes a multiple
PARTITIONS = 4  # of a multiprocessor; a warp's registers lie in one of them
SHARED_UNIT = 128  # bytes; a block takes a multiple
SHARED_RESERVED = 1024  # bytes that the system takes of each block's shared memory, from compute capability 8.0 on
BLOCK_WARPS = 32
TENSOR_MEMORY_COLUMNS = 512


@dataclass(frozen=True)
class Multiprocessor:
    """Warps and blocks that one multiprocessor holds at most; bytes of shared memory of it and, at most, of one block."""

    warps: int
    blocks: int
    shared: int
    shared_block: int


MULTIPROCESSORS = {
    80: Multiprocessor(warps=64, blocks=32, shared=164 * 1024, shared_block=163 * 1024),
    86: Multiprocessor(warps=48, blocks=16, shared=100 * 1024, shared_block=99 * 1024),
    90: Multiprocessor(warps=64, blocks=32, shared=228 * 1024, shared_block=227 * 1024),
    100: Multiprocessor(warps=64, blocks=32, shared=228 * 1024, shared_block=227 * 1024),
    120: Multiprocessor(warps=48, blocks=24, shared=100 * 1024, shared_block=99 * 1024),
}
ARCHITECTURES = tuple(MULTIPROCESSORS)


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks and warps of one multiprocessor, of how many warps it could hold, and what keeps it from more blocks."""

    blocks: int
    warps: int
    most_warps: int
    limits: tuple[str, ...]


def occupancy(architecture: int, registers: int, shared: int, warps: int, tensor_columns: int = 0) -> Occupancy:
    """Resident blocks of a kernel on one multiprocessor, with the largest share of its L1 cache given to shared memory.

    registers a thread; shared: bytes a block, static and dynamic, without what the system reserves; warps a block;
    tensor_columns: columns of tensor memory a block. blocks is 0 where a block exceeds what the hardware allows it.
    """
    hardware = MULTIPROCESSORS[architecture]
    limits = {
        "warps": hardware.warps // warps if warps <= BLOCK_WARPS else 0,
        "blocks": hardware.blocks,
        "registers": _blocks_by_registers(registers, warps),
        "shared memory": _blocks_by_shared(hardware, shared),
    }
    if tensor_columns:
        limits["tensor memory"] = TENSOR_MEMORY_COLUMNS // tensor_columns
    blocks = min(limits.values())
    binding = tuple(name for name, limit in limits.items() if limit == blocks)
    return Occupancy(blocks, blocks * warps, hardware.warps, binding)


def _blocks_by_registers(registers: int, warps: int) -> int:
    warp_registers = _up(registers * WARP_THREADS, REGISTERS_UNIT)
    if warp_registers * _up(warps, PARTITIONS) > REGISTERS:  # a launch is checked as if every partition held as many warps
        return 0
    return REGISTERS // PARTITIONS // warp_registers * PARTITIONS // warps


def _blocks_by_shared(hardware: Multiprocessor, shared: int) -> int:
    taken = _up(shared + SHARED_RESERVED, SHARED_UNIT)
    return hardware.shared // taken if shared <= hardware.shared_block else 0


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
