"""jepa's module signatures: attention that returns a pair, blocks that pass the ids on, position tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .common import MLP, AttentionBase, gather_masks, sincos_table
from .vjepa2 import PatchEmbed3D


class Attention(AttentionBase):
    def forward(self, x: Tensor, mask: Any = None) -> tuple[Tensor, Any]:
        return self.merge(self.attend(*self.split(x))), None


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, **kwargs: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, **kwargs)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, 4 * dim)

    def forward(self, x: Tensor, return_attention: bool = False, mask: Any = None) -> Any:
        y, attention = self.attn(self.norm1(x), mask=mask)
        if return_attention:
            return attention
        x = x + y
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(
        self, img_size: int = 32, patch_size: int = 16, num_frames: int = 4, dim: int = 64, depth: int = 2, **kwargs: Any
    ) -> None:
        super().__init__()
        self.out_layers, self.is_video, self.tubelet_size, self.patch_size = None, True, 2, patch_size
        self.patch_embed = PatchEmbed3D(patch_size, 2, dim)
        self.pos_embed = sincos_table(num_frames // 2 * (img_size // patch_size) ** 2, dim)
        self.blocks = nn.ModuleList(Block(dim, 2, **kwargs) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def interpolate_pos_encoding(self, x: Tensor, pos_embed: Tensor) -> Tensor:
        return pos_embed

    def forward(self, x: Tensor, masks: Any = None) -> Any:
        if masks is not None and not isinstance(masks, list):
            masks = [masks]
        positions = self.interpolate_pos_encoding(x, self.pos_embed)
        x = self.patch_embed(x)
        x += positions
        if masks is not None:
            x = gather_masks(x, masks)
            masks = torch.cat(masks)
        for block in self.blocks:
            x = block(x, mask=masks)
        return self.norm(x)
