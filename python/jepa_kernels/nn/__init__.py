"""Modules with the official names and state-dict keys, over the operators of this package."""

from jepa_kernels.nn.attention import Attention, RoPEAttention
from jepa_kernels.nn.block import MLP, Block
from jepa_kernels.nn.patch_embed import PatchEmbed, PatchEmbed3D
from jepa_kernels.nn.pos_embs import (
    get_1d_sincos_pos_embed_from_grid,
    get_2d_sincos_pos_embed,
    get_3d_sincos_pos_embed,
)

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "PatchEmbed",
    "PatchEmbed3D",
    "RoPEAttention",
    "get_1d_sincos_pos_embed_from_grid",
    "get_2d_sincos_pos_embed",
    "get_3d_sincos_pos_embed",
]
