"""Multi-head self-attention modules: one linear map to packed q, k, v, then `jk.masked_attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functional.masked_attention import masked_attention
from ..rope import Rope3D
from .linear import Linear


class Attention(nn.Module):
    """Self-attention without positions: (B, N, D) -> (B, N, D), or (total, D) -> (total, D) with a `jk.Ragged` mask.

    `attn_mask` is whatever `jk.masked_attention` takes as `mask`; `mask`, the token ids, is accepted for the sake of one call
    signature and not used. The official dropout arguments are absent: V-JEPA 2 trains with none.

    State dict: `qkv.{weight,bias}`, `proj.{weight,bias}`.

    Source: Vaswani et al. (2017); names of the official V-JEPA 2 code.

    Example:
        >>> Attention(64, num_heads=2)(torch.zeros(1, 5, 64)).shape
        torch.Size([1, 5, 64])
    """

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = False, qk_scale: float | None = None) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim={dim}, num_heads={num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = qk_scale if qk_scale is not None else self.head_dim**-0.5
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, attn_mask: Any = None) -> Tensor:
        return self._attend(x, attn_mask, rope=None)

    def _attend(self, x: Tensor, attn_mask: Any, rope: Rope3D | None) -> Tensor:
        qkv = self.qkv(x).view(*x.shape[:-1], 3, self.num_heads, self.head_dim)
        y = masked_attention(qkv, mask=attn_mask, rope=rope, scale=self.scale)  # [B, H, N, head_dim] or [total, H, head_dim]
        return self.proj((y.transpose(1, 2) if x.ndim == 3 else y).reshape(x.shape))


class RoPEAttention(Attention):
    """Self-attention with V-JEPA 2's 3-D rotary positions: (B, N, D) -> (B, N, D).

    The position of a token is the frame, row and column of its id. Ids are `mask` (B, N), or 0..N-1 without it, on a grid of
    `H_patches` by `W_patches` tokens a frame, or `grid_size` squared without them (`T` is implied by the ids). `rope`, a
    `jk.Rope3D` made from the same ids, takes the place of all these: blocks of one model share it, and with it its tables.

    State dict: as `Attention`.

    Source: V-JEPA 2 (Assran et al., 2025).

    Example:
        >>> RoPEAttention(64, num_heads=2, grid_size=2)(torch.zeros(1, 8, 64)).shape
        torch.Size([1, 8, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        grid_size: int = 14,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, qkv_bias=qkv_bias, qk_scale=qk_scale)
        self.grid_size = grid_size

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        attn_mask: Any = None,
        T: int | None = None,
        H_patches: int | None = None,
        W_patches: int | None = None,
        rope: Rope3D | None = None,
    ) -> Tensor:
        if rope is None:
            ids = mask if mask is not None else torch.arange(x.shape[1], device=x.device)
            rope = Rope3D.from_ids(ids, grid=(H_patches or self.grid_size, W_patches or self.grid_size))
        return self._attend(x, attn_mask, rope)
