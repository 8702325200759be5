"""Target and context patch embedding in plain PyTorch: two patch embeddings of the same pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ragged import RaggedIds
from .patch_embed import patch_embed


def patch_embed_pair(
    pixels: Tensor,
    target_weight: Tensor,
    target_bias: Tensor | None,
    context_weight: Tensor,
    context_bias: Tensor | None,
    *,
    keep: Tensor | Sequence[Tensor] | RaggedIds,
    target_pos_embed: Tensor | None = None,
    context_pos_embed: Tensor | None = None,
    mean: Tensor | Sequence[float] | None = None,
    std: Tensor | Sequence[float] | None = None,
) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
    """The unfused twin of `jepa_kernels.patch_embed_pair`: same arguments, same results up to rounding."""
    target = patch_embed(pixels, target_weight, target_bias, pos_embed=target_pos_embed, mean=mean, std=std)

    def context(ids: Tensor | RaggedIds) -> Tensor:
        return patch_embed(
            pixels, context_weight, context_bias, keep=ids, pos_embed=context_pos_embed, mean=mean, std=std
        )

    if isinstance(keep, (torch.Tensor, RaggedIds)):
        return target, context(keep)
    return target, tuple(context(ids) for ids in keep)
