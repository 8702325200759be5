"""Modules with the official names and state-dict keys, over the operators of this package."""

from .attention import Attention, RoPEAttention
from .block import MLP, NORMALIZATIONS, Block, make_norm
from .dynamic_tanh import DynamicTanh
from .linear import Linear, attach_copies
from .patch_embed import PatchEmbed, PatchEmbed3D
from .pos_embs import (
    get_1d_sincos_pos_embed_from_grid,
    get_2d_sincos_pos_embed,
    get_3d_sincos_pos_embed,
    interpolate_pos_embed,
)
from .projector import Projector
from .sigreg import SIGReg

__all__ = [
    "MLP",
    "NORMALIZATIONS",
    "Attention",
    "Block",
    "DynamicTanh",
    "Linear",
    "PatchEmbed",
    "PatchEmbed3D",
    "Projector",
    "RoPEAttention",
    "SIGReg",
    "attach_copies",
    "get_1d_sincos_pos_embed_from_grid",
    "get_2d_sincos_pos_embed",
    "get_3d_sincos_pos_embed",
    "interpolate_pos_embed",
    "make_norm",
]
