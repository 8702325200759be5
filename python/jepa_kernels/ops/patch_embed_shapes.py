"""What every implementation of `patch_embed` derives from its arguments alone."""

from __future__ import annotations

import torch
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]  # weight, bias, pos_embed, pixels; empty where not needed


def token_count(pixels: Tensor, weight: Tensor) -> int:
    """Patches an element of the batch."""
    tokens = 1
    for size, step in zip(pixels.shape[2:], weight.shape[2:], strict=True):
        tokens *= size // step
    return tokens


def result_dtype(weight: Tensor, pos_embed: Tensor | None) -> torch.dtype:
    """The type of the tokens."""
    return weight.dtype if pos_embed is None else torch.promote_types(weight.dtype, pos_embed.dtype)


def patch_reach(pixels: Tensor, weight: Tensor) -> int:
    """Elements from a patch's first pixel to its last."""
    sizes = (pixels.shape[1], *weight.shape[2:])
    return sum((size - 1) * stride for size, stride in zip(sizes, pixels.stride()[1:], strict=True))
