"""Tiles"""
import torch
def forward_tile(head_dim, dtype, q_len, k_len, capability):
    if dtype == torch.float32:
        return {"BLOCK_M": 32, "BLOCK_N": 32}, {"num_warps": 4, "num_stages": 1}
    return {"BLOCK_M": 64, "BLOCK_N": 64}, {"num_warps": 4, "num_stages": 2}
