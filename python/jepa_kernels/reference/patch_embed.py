"""Patch embedding in plain PyTorch, as the published models compute it: normalise, convolve, add position, gather."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ragged import RaggedIds


def patch_embed(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    keep: Tensor | Sequence[Tensor] | RaggedIds | None = None,
    pos_embed: Tensor | None = None,
    mean: Tensor | Sequence[float] | None = None,
    std: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """The unfused twin of `jepa_kernels.patch_embed`: same arguments, same result up to rounding."""
    if pixels.ndim == 4:
        pixels, weight = pixels.unsqueeze(2), weight.unsqueeze(2)
    x = normalise(pixels, mean, std, weight.dtype)
    tokens = F.conv3d(x, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)  # [B, N, D]
    if pos_embed is not None:
        tokens = tokens + pos_embed
    if keep is None:
        return tokens
    if isinstance(keep, RaggedIds):
        lengths = keep.cu_seqlens.diff().tolist()
        kept = zip(tokens, keep.ids.split(lengths), strict=True)
        return torch.cat([sample.index_select(0, ids) for sample, ids in kept])
    masks = [keep] if isinstance(keep, Tensor) else keep
    width = tokens.shape[-1]
    return torch.cat([tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, width)) for ids in masks])


def normalise(
    pixels: Tensor, mean: Tensor | Sequence[float] | None, std: Tensor | Sequence[float] | None, dtype: torch.dtype
) -> Tensor:
    """(x - mean[c]) / std[c] in float32 (float64 for dtype float64), rounded once to `dtype`; channels are dimension 1."""
    x = pixels.to(torch.float64 if dtype == torch.float64 else torch.float32)
    shape = (1, -1, *[1] * (pixels.ndim - 2))
    if mean is not None:
        x = x - torch.as_tensor(mean, dtype=x.dtype, device=x.device).view(shape)
    if std is not None:
        x = x / torch.as_tensor(std, dtype=x.dtype, device=x.device).view(shape)
    return x.to(dtype)


def unfold(pixels: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, C, T, H, W) to (B * N, C * pt * ph * pw): one row a patch, in the order of a convolution's weight."""
    batch, channels, frames, height, width = pixels.shape
    t, h, w = patch
    split = pixels.reshape(batch, channels, frames // t, t, height // h, h, width // w, w)
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, channels * t * h * w)


def fold(rows: Tensor, shape: Sequence[int], patch: Sequence[int]) -> Tensor:
    """The inverse of `unfold`."""
    batch, channels, frames, height, width = shape
    t, h, w = patch
    split = rows.reshape(batch, frames // t, height // h, width // w, channels, t, h, w)
    return split.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, channels, frames, height, width)


def embed_rows(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    pos_embed: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
) -> Tensor:
    """The operator `patch_embed`: tokens of the patches `rows` (indices into B * N), None for all; NaN for a row below 0."""
    tokens = patch_embed(pixels, weight, bias, pos_embed=pos_embed, mean=mean, std=std).flatten(0, 1)
    if rows is None:
        return tokens
    return torch.where((rows >= 0).unsqueeze(1), tokens.index_select(0, rows.clamp(min=0)), torch.nan)


def embed_rows_backward(
    grad: Tensor,
    pixels: Tensor,
    weight: Tensor,
    rows: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    pos_dtype: torch.dtype,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `embed_rows` for weight, bias, pos_embed and pixels; those that are not needed come back empty."""
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    patches = unfold(normalise(pixels, mean, std, weight.dtype), weight.shape[2:])  # [B * N, K]
    tokens = math.prod(size // step for size, step in zip(pixels.shape[2:], weight.shape[2:], strict=True))
    if rows is None:
        rows = torch.arange(patches.shape[0], device=grad.device)
    grad, rows = grad[rows >= 0], rows[rows >= 0]
    dy = grad.to(weight.dtype)  # [R, D]
    grad_weight, grad_bias, grad_pos, grad_pixels = (grad.new_empty(0) for _ in needs)
    if needs[0]:
        grad_weight = (dy.t() @ patches.index_select(0, rows)).view(weight.shape)
    if needs[1]:
        grad_bias = dy.sum(0, dtype=exact).to(weight.dtype)
    if needs[2]:
        sums = torch.zeros(tokens, dy.shape[1], dtype=exact, device=dy.device)
        grad_pos = sums.index_add_(0, rows % max(tokens, 1), grad.to(exact)).to(pos_dtype)
    if needs[3]:
        sums = torch.zeros(patches.shape, dtype=exact, device=dy.device)
        sums.index_add_(0, rows, (dy @ weight.flatten(1)).to(exact))
        grad_pixels = normalise(fold(sums, pixels.shape, weight.shape[2:]), None, std, exact).to(pixels.dtype)
    return grad_weight, grad_bias, grad_pos, grad_pixels
