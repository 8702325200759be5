"""Tile sizes of the attention kernels: a plain function of architecture, head dim, dtype, rows and kind of mask."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """block_m queries by block_n keys a step, warps a block, stages of the load pipeline, bound of registers a thread.

    resident: programs a multiprocessor that share the items of a ragged batch; 0: one program an item, as the hardware schedules.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None
    resident: int = 0

    def constants(self) -> dict[str, int]:
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n}

    def options(self) -> dict[str, int | None]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "maxnreg": self.max_registers}


# 16-bit dtypes, by the largest head dim they hold: none spills registers on sm_80, 86, 90, 100 or 120, and each fits their
# shared memory (99 KB on sm_86 and 120). Boolean masks load a tile of the mask too, and inside a branch that Triton does not
# pipeline, so they take smaller tiles and one stage. Where ptxas would spill a few registers for the sake of one more block a
# multiprocessor (mostly on sm_100), an explicit bound keeps it from that.
FORWARD = {96: Tile(128, 64, 8, 2), 128: Tile(128, 32, 8, 2), 256: Tile(32, 32, 8, 1)}
FORWARD_SHORT = {64: Tile(64, 64, 4, 2), 128: Tile(64, 32, 4, 2, 255), 256: Tile(32, 32, 8, 1)}
FORWARD_BOOL = {96: Tile(128, 32, 8, 1), 128: Tile(64, 32, 8, 1), 256: Tile(32, 32, 8, 1)}
QUERY_GRADIENT = {
    32: Tile(64, 64, 4, 2, 255),
    64: Tile(64, 64, 4, 2),
    96: Tile(64, 32, 8, 2),
    128: Tile(64, 64, 8, 2),
    256: Tile(32, 32, 8, 2),
}
QUERY_GRADIENT_BOOL = {64: Tile(64, 32, 4, 1), 128: Tile(64, 32, 8, 1, 255), 256: Tile(32, 32, 8, 1)}
KEY_GRADIENT = {
    64: Tile(32, 128, 8, 2),
    80: Tile(16, 128, 8, 2, 255),
    96: Tile(32, 64, 8, 2, 255),
    128: Tile(32, 64, 8, 1),
    256: Tile(32, 32, 8, 1),
}
KEY_GRADIENT_BOOL = {128: Tile(16, 64, 8, 1), 256: Tile(16, 32, 8, 1)}
# float32 has no tensor-core product of full precision: small tiles keep both factors of a multiply-add in registers.
FLOAT32 = {64: Tile(32, 16, 4, 1, 128), 128: Tile(16, 16, 4, 1, 128), 256: Tile(16, 16, 4, 1)}
QUERY_GRADIENT_FLOAT32 = {64: Tile(32, 16, 4, 1, 128), 128: Tile(16, 16, 4, 1), 256: Tile(16, 16, 4, 1, 255)}
KEY_GRADIENT_FLOAT32 = {64: Tile(16, 16, 4, 1), 128: Tile(16, 16, 4, 1, 255), 256: Tile(16, 16, 8, 1)}
SHORT_ROWS = 64  # at most this many queries fill one tile of FORWARD_SHORT


def _fitting(tiles: dict[int, Tile], head_dim: int) -> Tile:
    return next(tile for limit, tile in tiles.items() if head_dim <= limit)


def forward_tile(head_dim: int, dtype: torch.dtype, rows: int, bool_mask: bool) -> Tile:
    if dtype == torch.float32:
        return _fitting(FLOAT32, head_dim)
    if bool_mask:
        return _fitting(FORWARD_BOOL, head_dim)
    return _fitting(FORWARD_SHORT if rows <= SHORT_ROWS else FORWARD, head_dim)


def query_gradient_tile(head_dim: int, dtype: torch.dtype, bool_mask: bool) -> Tile:
    if dtype == torch.float32:
        return _fitting(QUERY_GRADIENT_FLOAT32, head_dim)
    return _fitting(QUERY_GRADIENT_BOOL if bool_mask else QUERY_GRADIENT, head_dim)


def key_gradient_tile(head_dim: int, dtype: torch.dtype, bool_mask: bool) -> Tile:
    if dtype == torch.float32:
        return _fitting(KEY_GRADIENT_FLOAT32, head_dim)
    return _fitting(KEY_GRADIENT_BOOL if bool_mask else KEY_GRADIENT, head_dim)
