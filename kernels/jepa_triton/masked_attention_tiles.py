"""Tiles"""
from typing import NamedTuple
import torch
class Tile(NamedTuple):
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    def constants(self) -> dict[str, int]:
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n}

    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}

def forward_tile(arch, head_dim, dtype, q_len):
    if dtype == torch.float32:
        return Tile(32,32,4,1)
    return Tile(64,64,4,2)
query_gradient_tile = key_gradient_tile=forward_tile
