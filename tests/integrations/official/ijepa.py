"""ijepa's module signatures: materialised attention weights, position table added out of place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .common import MLP, gather_masks, sincos_table


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = self.attn_drop(((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2))), weights


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, **kwargs: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, **kwargs)
        self.drop_path = nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, 4 * dim)

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor:
        y, weights = self.attn(self.norm1(x))
        if return_attention:
            return weights
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, img_size: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.img_size, self.patch_size = img_size, patch_size
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    def __init__(
        self, img_size: int = 64, patch_size: int = 16, dim: int = 64, depth: int = 2, heads: int = 2, **kwargs: Any
    ) -> None:
        super().__init__()
        self.num_heads = heads
        self.patch_embed = PatchEmbed(img_size, patch_size, dim)
        self.pos_embed = sincos_table(self.patch_embed.num_patches, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, **kwargs) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, masks: Any = None) -> Tensor:
        if masks is not None and not isinstance(masks, list):
            masks = [masks]
        x = self.patch_embed(x) + self.pos_embed
        if masks is not None:
            x = gather_masks(x, masks)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class VisionTransformerPredictor(nn.Module):
    def __init__(self, num_patches: int, dim: int = 64, width: int = 48, depth: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.predictor_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.predictor_pos_embed = sincos_table(num_patches, width)
        self.predictor_blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, dim)

    def forward(self, x: Tensor, masks_x: Any, masks: Any) -> Tensor:
        masks_x = masks_x if isinstance(masks_x, list) else [masks_x]
        masks = masks if isinstance(masks, list) else [masks]
        batch = len(x) // len(masks_x)
        x = self.predictor_embed(x)
        table = self.predictor_pos_embed.repeat(batch, 1, 1)
        x += gather_masks(table, masks_x)
        context = x.shape[1]
        positions = gather_masks(table, masks)
        x = torch.cat([x.repeat(len(masks), 1, 1), self.mask_token + positions], 1)
        for block in self.predictor_blocks:
            x = block(x)
        return self.predictor_proj(self.predictor_norm(x)[:, context:])
