"""Pixels to tokens: the official patch-embedding modules over `jk.patch_embed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.patch_embed import channel_numbers, patch_embed


class _PatchEmbed(nn.Module):
    """What the image and the clip module share: a convolution's parameters, and the pixel statistics to fold in."""

    proj: nn.Conv2d | nn.Conv3d
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def _set_statistics(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        # Numbers, not buffers: `module.to(torch.bfloat16)` would round buffers, and with them every pixel.
        channels = self.proj.in_channels
        self.mean = None if mean is None else channel_numbers("mean", mean, channels)
        self.std = None if std is None else channel_numbers("std", std, channels)

    def forward(self, x: Tensor, keep: Any = None, pos_embed: Tensor | None = None) -> Tensor:
        # Decoded frames are bytes; floating-point pixels have been normalised by whoever made them floating-point.
        mean, std = (self.mean, self.std) if x.dtype == torch.uint8 else (None, None)
        return patch_embed(x, self.proj.weight, self.proj.bias, keep=keep, pos_embed=pos_embed, mean=mean, std=std)


class PatchEmbed(_PatchEmbed):
    """Image to tokens: (B, C, H, W) -> (B, N, D), or only the tokens in `keep`; see `jk.patch_embed`.

    State dict: `proj.weight` (D, C, p, p), `proj.bias` (D,). `mean` and `std`, per channel in units of 0..255, apply to
    uint8 pixels only. Errors, bytes, FLOPs and determinism are those of `jk.patch_embed`.

    Source: ViT (Dosovitskiy et al., 2021); names of the official V-JEPA 2 code.

    Example:
        >>> PatchEmbed(patch_size=8, embed_dim=32)(torch.zeros(1, 3, 16, 24)).shape
        torch.Size([1, 6, 32])
    """

    def __init__(
        self,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self._set_statistics(mean, std)


class PatchEmbed3D(_PatchEmbed):
    """Clip to tokens: (B, C, T, H, W) -> (B, N, D), or only the tokens in `keep`; see `jk.patch_embed`.

    State dict: `proj.weight` (D, C, tubelet, p, p), `proj.bias` (D,). `mean` and `std` as in `PatchEmbed`. The clip may
    have any strides: decoded (B, T, H, W, C) frames come in as a permuted view.

    Source: ViViT (Arnab et al., 2021); names of the official V-JEPA 2 code.

    Example:
        >>> PatchEmbed3D(patch_size=8, embed_dim=32)(torch.zeros(1, 3, 4, 16, 16)).shape
        torch.Size([1, 8, 32])
    """

    def __init__(
        self,
        patch_size: int = 16,
        tubelet_size: int = 2,
        in_chans: int = 3,
        embed_dim: int = 768,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=kernel, stride=kernel)
        self._set_statistics(mean, std)
