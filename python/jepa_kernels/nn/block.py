"""The pre-norm transformer block and its MLP."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..rope import Rope3D
from .attention import Attention, RoPEAttention
from .dynamic_tanh import DynamicTanh
from .linear import Linear, mlp_product

LAYER_NORM_EPS = 1e-6
NORMALIZATIONS = ("layer_norm", "dynamic_tanh")


def make_norm(dim: int, normalization: str = "layer_norm") -> nn.Module:
    """The layer of that name over the last axis: LayerNorm with eps 1e-6, or `DynamicTanh`.

    Raises:
        ValueError: another name.

    Example:
        >>> make_norm(8, "dynamic_tanh")
        DynamicTanh(8)
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}; got {normalization!r}")
    return DynamicTanh(dim) if normalization == "dynamic_tanh" else nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


class MLP(nn.Module):
    """Two linear maps with an exact (erf) GELU between: y = fc2(gelu(fc1(x))), (..., D) -> (..., out).

    State dict: `fc1.{weight,bias}`, `fc2.{weight,bias}`.

    Example:
        >>> import torch
        >>> MLP(8, hidden_features=32)(torch.zeros(2, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(self, in_features: int, hidden_features: int | None = None, out_features: int | None = None) -> None:
        super().__init__()
        hidden_features = hidden_features or in_features
        self.fc1 = Linear(in_features, hidden_features)
        self.fc2 = Linear(hidden_features, out_features or in_features)

    def forward(self, x: Tensor) -> Tensor:
        y = mlp_product(x, self.fc1, self.fc2)
        return self.fc2(self.fc1.then_gelu(x)) if y is None else y


class Block(nn.Module):
    """Transformer block: x <- x + attn(norm1(x)), then x <- x + mlp(norm2(x)); (B, N, D) -> (B, N, D).
    Sequences of different lengths come packed, (total, D), with a `jk.Ragged` as `attn_mask`.

    LayerNorm eps is 1e-6; `normalization="dynamic_tanh"` puts `DynamicTanh` into its place. With `use_rope` the attention is
    `RoPEAttention` and takes its position arguments, or the shared `rope`.

    State dict: `norm1`, `attn.qkv`, `attn.proj`, `norm2`, `mlp.fc1`, `mlp.fc2`, each with `weight` and `bias` (dynamic tanh
    also `alpha`).

    Source: ViT (Dosovitskiy et al., 2021); names of the official V-JEPA 2 code.

    Example:
        >>> import torch
        >>> Block(64, num_heads=2, use_rope=True, grid_size=2)(torch.zeros(1, 4, 64)).shape
        torch.Size([1, 4, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        grid_size: int = 16,
        use_rope: bool = False,
        normalization: str = "layer_norm",
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(dim, normalization)
        self.attn: Attention
        if use_rope:
            self.attn = RoPEAttention(dim, num_heads, qkv_bias, qk_scale, grid_size)
        else:
            self.attn = Attention(dim, num_heads, qkv_bias, qk_scale)
        self.norm2 = make_norm(dim, normalization)
        self.mlp = MLP(dim, hidden_features=int(dim * mlp_ratio))

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
        y = self.norm1(x)
        if isinstance(self.attn, RoPEAttention):
            y = self.attn(y, mask, attn_mask, T=T, H_patches=H_patches, W_patches=W_patches, rope=rope)
        else:
            y = self.attn(y, mask, attn_mask)
        x = x + y
        return x + self.mlp(self.norm2(x))
