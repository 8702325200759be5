"""`patch_embed_pair`: what a JEPA step embeds of one batch, all patches for the target and the kept ones for the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.patch_embed_pair import patch_embed_pair as _operator
from ..ops.patch_embed_shapes import token_count
from ..ragged import RaggedIds
from .patch_embed import Channels
from .patch_embed import prepare as _prepare_one

Keep = Tensor | Sequence[Tensor] | RaggedIds


def patch_embed_pair(
    pixels: Tensor,
    target_weight: Tensor,
    target_bias: Tensor | None,
    context_weight: Tensor,
    context_bias: Tensor | None,
    *,
    keep: Keep,
    target_pos_embed: Tensor | None = None,
    context_pos_embed: Tensor | None = None,
    mean: Channels = None,
    std: Channels = None,
) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
    """Embeds one batch twice: every patch with the target encoder's weights, the kept patches with the context encoder's.

    Formula: `(patch_embed(pixels, target_weight, target_bias, pos_embed=target_pos_embed),
    patch_embed(pixels, context_weight, context_bias, keep=keep, pos_embed=context_pos_embed))`, both with `mean` and `std`.

    Shapes:
        pixels, weights, biases, position embeddings, mean, std: as in `patch_embed`; the two weights agree in patch and channels.
        keep: int64 (B, K), context (B, K, D); a sequence of M masks (B, K_m), whose K_m may differ, context a tuple of M tensors
            (B, K_m, D), views of one result; `RaggedIds`, context (total, D). Ids may repeat and come in any order.
        target: (B, N, D).

    Dtypes: as in `patch_embed`, for each weight its own (under autocast both are cast). Gradients for all weights, biases,
        position embeddings and float pixels; tokens that take no part in a loss cost none.

    Raises:
        TypeError, ValueError: as `patch_embed`; the weights differ in patch or channels, or `keep` is None or empty.

    Cost: 2 * (B * N + R) * K * D FLOPs for R kept patches. Bytes: the pixels once, both weights, (B * N + R) * D tokens; on a CPU
        the packed values are written once and read by both products (above 8192 patches the kept ones are packed again). On a
        GPU both products are one launch whose tiles are interleaved, for kept patches to find their pixels in the L2 cache: with
        one mask, those of a clip follow its tiles of the target; several masks follow each other, and the later ones find their
        pixels there as far as it holds the batch.

    Deterministic: yes on cpu and triton, bit for bit, gradients included.

    Source: the training step of V-JEPA 2 (Assran et al., 2025), which embeds every clip once for the target encoder and once for
        each mask of the context encoder.

    Example:
        >>> import torch, jepa_kernels as jk
        >>> pixels = torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8)
        >>> target, context = torch.randn(8, 3, 2, 16, 16), torch.randn(8, 3, 2, 16, 16)
        >>> masks = [torch.tensor([[0, 3, 7]]), torch.tensor([[5]])]
        >>> every, kept = jk.patch_embed_pair(pixels, target, None, context, None, keep=masks)
        >>> every.shape, [tokens.shape for tokens in kept]
        (torch.Size([1, 8, 8]), [torch.Size([1, 3, 8]), torch.Size([1, 1, 8])])
    """
    arguments = prepare(
        pixels,
        target_weight,
        target_bias,
        context_weight,
        context_bias,
        keep=keep,
        target_pos_embed=target_pos_embed,
        context_pos_embed=context_pos_embed,
        mean=mean,
        std=std,
    )
    target, context = _operator(**arguments)
    tokens = token_count(arguments["pixels"], arguments["weight"])
    target = target.view(pixels.shape[0], tokens, target_weight.shape[0])
    if isinstance(keep, RaggedIds):
        return target, context
    if isinstance(keep, Tensor):
        return target, context.view(*keep.shape, context_weight.shape[0])
    parts = context.split([mask.numel() for mask in keep])
    return target, tuple([part.view(*mask.shape, context_weight.shape[0]) for part, mask in zip(parts, keep, strict=True)])


def prepare(
    pixels: Tensor,
    target_weight: Tensor,
    target_bias: Tensor | None,
    context_weight: Tensor,
    context_bias: Tensor | None,
    *,
    keep: Keep,
    target_pos_embed: Tensor | None = None,
    context_pos_embed: Tensor | None = None,
    mean: Channels = None,
    std: Channels = None,
) -> dict[str, Any]:
    """Checks the call and returns the operator's arguments."""
    if keep is None:
        raise ValueError("patch_embed_pair: keep is None; give the ids of the context, or call patch_embed for each weight")
    target = _prepare_one(pixels, target_weight, target_bias, pos_embed=target_pos_embed, mean=mean, std=std)
    if isinstance(context_weight, Tensor) and context_weight.shape[1:] != target_weight.shape[1:]:
        raise ValueError(
            f"patch_embed_pair: context_weight has shape {tuple(context_weight.shape)}, target_weight "
            f"{tuple(target_weight.shape)}; both must take the same patches"
        )
    # Masks may differ in length here: each is checked and turned into rows on its own.
    masks = [keep] if isinstance(keep, (Tensor, RaggedIds)) or not isinstance(keep, Sequence) else list(keep)
    if not masks:
        raise ValueError("patch_embed_pair: keep is an empty list; give at least one mask")
    kept = [
        _prepare_one(pixels, context_weight, context_bias, keep=mask, pos_embed=context_pos_embed, mean=mean, std=std)
        for mask in masks
    ]
    rows = [entry["rows"] for entry in kept]
    context = kept[0]
    return {
        "pixels": target["pixels"],
        "weight": target["weight"],
        "bias": target["bias"],
        "pos_embed": target["pos_embed"],
        "kept_weight": context["weight"],
        "kept_bias": context["bias"],
        "kept_pos_embed": context["pos_embed"],
        "rows": rows[0] if len(rows) == 1 else torch.cat(rows),
        "mean": target["mean"],
        "std": target["std"],
    }
