"""Small parts that the re-creations of the official models share; written from a description of their interfaces."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def gather_masks(x: Tensor, masks: list[Tensor]) -> Tensor:
    """Tokens that each mask keeps, mask-major; the index is repeated over the channels in memory, as in the originals."""
    return torch.cat([torch.gather(x, 1, ids.unsqueeze(-1).repeat(1, 1, x.shape[-1])) for ids in masks])


def sincos_table(tokens: int, dim: int) -> nn.Parameter:
    """A frozen table of positions (1, tokens, dim)."""
    omega = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * omega
    return nn.Parameter(torch.cat([angle.sin(), angle.cos()], 1).float()[None], requires_grad=False)


def square_side(tokens: int) -> int:
    return math.isqrt(tokens)


class MLP(nn.Module):
    """Two linear layers with the exact GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class AttentionBase(nn.Module):
    """Parameters of every attention of these repositories, and their two ways through the softmax."""

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0, use_sdpa: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop_prob = proj_drop
        self.proj_drop = nn.Dropout(proj_drop)
        self.use_sdpa = use_sdpa
        self.is_causal = False

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        if attn_mask is not None or self.use_sdpa:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=self.proj_drop_prob)
        return self.attn_drop((q @ k.transpose(-2, -1) * self.scale).softmax(-1)) @ v

    def merge(self, y: Tensor) -> Tensor:
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))
