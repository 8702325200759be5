"""What is tuned, most important first, and the tiles that are tried for each."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from ..kernels import tuned_tiles
from ..kernels.masked_attention_tiles import Tile

DTYPE = torch.bfloat16
ORDER = ((64, 32, 80), (128, 96))  # head dims: those of the models, then the rest
TOKENS = {"long": 2048, "short": 258}  # of a sequence: V-JEPA 2 ViT-L, one frame of V-JEPA 2-AC
CALL_TOKENS = 16 * 1024
HEADS = 16
REGISTERS = 224  # float32 accumulators a thread, from which on a tile is sure to spill
SHARED = 227 * 1024


@dataclass(frozen=True)
class Entry:
    """One entry of the table: a kernel, the largest head dim that it serves, and the kind of its rows."""

    kernel: str
    head_dim: int
    rows: str

    @property
    def key(self) -> str:
        return f"{self.head_dim}-{self.rows}"

    @property
    def name(self) -> str:
        return f"{self.kernel}/{self.key}"

    @property
    def tokens(self) -> int:
        return TOKENS[self.rows]

    def default(self) -> Tile:
        """The tile that the kernel takes untuned."""
        return tuned_tiles.default(self.kernel, self.head_dim, DTYPE, self.tokens)


def entries() -> list[Entry]:
    """Every entry: the head dims of the models first, of these the forward before the backward."""
    found = []
    for head_dims in ORDER:
        for kernels in (("forward",), ("query_gradient", "key_gradient")):
            found += [Entry(k, d, rows) for d in head_dims for k in kernels for rows in TOKENS]
    return found


def tiles(entry: Entry) -> list[Tile]:
    """The tiles to try beside the default: what may fit the registers and the shared memory; the compiler has the last word."""
    keys = entry.kernel == "key_gradient"
    sides = ((16, 32, 64), (64, 128)) if keys else ((64, 128), (32, 64, 128))
    stages = (1, 2) if keys else (2, 3)
    found = [
        Tile(block_m, block_n, warps, depth)
        for block_m, block_n, warps, depth in itertools.product(*sides, (4, 8), stages)
        if _may_fit(entry, block_m, block_n, warps, depth)
    ]
    usual = entry.default()
    # Also the default's shape with the most registers that a block of its warps may have a thread.
    found.append(usual._replace(max_registers=255 if usual.max_registers is None else None))
    return [tile for tile in dict.fromkeys(found) if tile != usual]


def _may_fit(entry: Entry, block_m: int, block_n: int, warps: int, stages: int) -> bool:
    width = sum(size for _, size in _segments(entry.head_dim))
    own, other = (block_n, block_m) if entry.kernel == "key_gradient" else (block_m, block_n)
    scores = block_m * block_n
    sums = own * width * (2 if entry.kernel == "key_gradient" else 1) + scores * (1 if entry.kernel == "forward" else 2)
    held = own if entry.kernel == "forward" else 2 * own
    shared = 2 * width * (held + 2 * stages * other)
    # 16 rows a warp, those of one tensor-core instruction.
    return sums / (32 * warps) <= REGISTERS and shared <= SHARED and own >= 16 * warps


def _segments(head_dim: int) -> tuple[tuple[int, int], ...]:
    from ..kernels.segments import head_dim_segments

    return head_dim_segments(head_dim)
