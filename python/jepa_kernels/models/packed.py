"""Sequences of all masks of a batch in one row of tokens: I-JEPA, V-JEPA, and V-JEPA 2 where its masks are ragged.

A packed batch is (total, D) and a `RaggedIds` whose sequences are mask-major: mask 0 of every sample, then mask 1. Every
sequence attends within itself, so one call does what the official code does in one call a mask, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..attention_masks import Ragged
from ..ragged import RaggedIds
from ..rope import Rope3D
from ._common import run_blocks

Mask = Tensor | RaggedIds


def pack(masks: Sequence[Mask]) -> RaggedIds:
    """All masks as one: int64 (B, K) or `RaggedIds` each -> ids (total,) and M * B sequences.

    Raises:
        ValueError: there is no mask.
    """
    if not masks:
        raise ValueError("masks must hold at least one mask; got none")
    ids = torch.cat([mask.flatten() if isinstance(mask, Tensor) else mask.ids for mask in masks])
    starts, offset = [], 0
    for mask in masks:
        if isinstance(mask, Tensor):
            lengths = torch.arange(mask.shape[0], dtype=torch.int32, device=mask.device) * mask.shape[1]
            count = mask.numel()
        else:
            lengths, count = mask.cu_seqlens[:-1], mask.ids.numel()
        starts.append(lengths + offset)
        offset += count
    starts.append(torch.full((1,), offset, dtype=torch.int32, device=ids.device))
    return RaggedIds(ids, torch.cat(starts))


def unpack(x: Tensor, masks: Sequence[Mask]) -> list[Tensor]:
    """Packed tokens (total, D) mask by mask, as `jk.jepa_loss` takes them: (B, K, D), or (total, D) of a ragged mask."""
    counts = [mask.numel() if isinstance(mask, Tensor) else mask.ids.numel() for mask in masks]
    parts = x.split(counts)
    return [
        part.view(*mask.shape, x.shape[-1]) if isinstance(mask, Tensor) else part
        for part, mask in zip(parts, masks, strict=True)
    ]


def longest(masks: Sequence[Mask], bound: int) -> int:
    """The length of the longest mask, or `bound` where only the device knows it."""
    return max(mask.shape[1] if isinstance(mask, Tensor) else bound for mask in masks)


def encode(encoder: Any, tokens: Tensor, masks: Sequence[Mask], grid: tuple[int, int]) -> Tensor:
    """The encoder's blocks and last norm over the packed tokens that its patch embedding made for these masks.

    `grid` is the rows and columns of a frame of tokens."""
    packed, rope = pack(masks), None
    if encoder.use_rope:
        rope = Rope3D.from_ids(packed.ids, grid=grid)
    sequences = Ragged(packed.cu_seqlens, longest(masks, encoder.num_patches))
    return encoder.norm(run_blocks(encoder.blocks, tokens, rope, encoder.use_activation_checkpointing, sequences))


def predict(
    predictor: Any, x: Tensor, contexts: Sequence[Mask], masks: Sequence[Mask], mask_tokens: Tensor, num_tokens: int
) -> Tensor:
    """What the predictor makes of each target token of `masks`, given the packed context tokens `x` of `contexts`.

    `mask_tokens` is (total targets, width), or broadcasts to it; no mask has more than `num_tokens`.
    Sequence s of the blocks is context s, then targets s.
    """
    both, _, target_places = _mixed(predictor, x, contexts, masks, mask_tokens, num_tokens)
    # LayerNorm acts on each token alone, so only the tokens that leave are normalised.
    return predictor.predictor_proj(predictor.predictor_norm(both[target_places]))


def predict_both(
    predictor: Any, x: Tensor, contexts: Sequence[Mask], masks: Sequence[Mask], mask_tokens: Tensor, num_tokens: int
) -> tuple[Tensor, Tensor]:
    """The same for context tokens, too: what the predictor makes of those, then of the targets."""
    both, context_places, target_places = _mixed(predictor, x, contexts, masks, mask_tokens, num_tokens)
    predicted = predictor.predictor_proj(predictor.predictor_norm(both))
    return predicted[context_places], predicted[target_places]


def _mixed(
    predictor: Any, x: Tensor, contexts: Sequence[Mask], masks: Sequence[Mask], mask_tokens: Tensor, num_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens after the predictor's blocks, and the places of context and target tokens among them."""
    context, target = pack(contexts), pack(masks)
    x, targets = predictor.predictor_embed(x), mask_tokens.expand(target.ids.shape[0], -1)
    table = predictor.predictor_pos_embed
    if table is not None:
        x, targets = x + table[0, context.ids], targets + table[0, target.ids]
    context_places, target_places = _places(context, target)
    both = x.new_empty((x.shape[0] + targets.shape[0], x.shape[1]), dtype=torch.promote_types(x.dtype, targets.dtype))
    both = both.index_copy(0, context_places, x.to(both.dtype)).index_copy(0, target_places, targets.to(both.dtype))
    rope = None
    if table is None:
        ids = torch.empty_like(torch.cat([context.ids, target.ids]))
        ids = ids.index_copy(0, context_places, context.ids).index_copy(0, target_places, target.ids)
        rope = Rope3D.from_ids(ids, grid=(predictor.grid_height, predictor.grid_width))
    length = longest(contexts, num_tokens) + longest(masks, num_tokens)
    sequences = Ragged(context.cu_seqlens + target.cu_seqlens, length)
    both = run_blocks(predictor.predictor_blocks, both, rope, predictor.use_activation_checkpointing, sequences)
    return both, context_places, target_places


def _places(context: RaggedIds, target: RaggedIds) -> tuple[Tensor, Tensor]:
    """Where each context token and each target token stands when every sequence is its context, then its targets."""
    before_targets = context.cu_seqlens[1:]  # context tokens before the targets of each sequence
    before_context = target.cu_seqlens[:-1]
    return _shifted(context, before_context), _shifted(target, before_targets)


def _shifted(packed: RaggedIds, shift: Tensor) -> Tensor:
    place = torch.arange(packed.ids.shape[0], device=packed.ids.device)
    sequence = torch.searchsorted(packed.cu_seqlens, place, right=True) - 1
    return place + shift[sequence]


def stats_of(
    loss_per_mask: Tensor, targets: Tensor, masks_enc: Sequence[Mask], masks_pred: Sequence[Mask]
) -> dict[str, Any]:
    """What a forward pass tells beside the loss; see `IJEPA` and `VJEPA`; the counts of ragged masks are means."""
    return {
        "loss_per_mask": loss_per_mask.detach(),
        "target_std": targets.flatten(0, 1).std(dim=0).mean(),
        "context_tokens": [_mean_length(mask) for mask in masks_enc],
        "target_tokens": [_mean_length(mask) for mask in masks_pred],
    }


def _mean_length(mask: Mask) -> float:
    if isinstance(mask, Tensor):
        return mask.shape[1]
    return mask.ids.shape[0] / (mask.cu_seqlens.shape[0] - 1)
