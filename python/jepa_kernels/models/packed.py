"""Sequences of all masks of a batch in one row of tokens: how I-JEPA and V-JEPA run, with equal and with ragged masks.

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


def encode(encoder: Any, tokens: Tensor, masks: Sequence[Mask]) -> Tensor:
    """The encoder's blocks and last norm over the packed tokens that its patch embedding made for these masks."""
    sequences = Ragged(pack(masks).cu_seqlens, longest(masks, encoder.num_patches))
    return encoder.norm(run_blocks(encoder.blocks, tokens, None, encoder.use_activation_checkpointing, sequences))


def predict(
    predictor: Any, x: Tensor, contexts: Sequence[Mask], masks: Sequence[Mask], mask_tokens: Tensor
) -> Tensor:
    """What the predictor makes of each target token of `masks`, given the packed context tokens `x` of `contexts`.

    `mask_tokens` is (total targets, width), or broadcasts to it. Sequence s of the blocks is context s, then targets s.
    """
    context, target = pack(contexts), pack(masks)
    table = predictor.predictor_pos_embed[0]
    x = predictor.predictor_embed(x)
    x = x + table[context.ids]
    targets = mask_tokens + table[target.ids]
    context_places, target_places = _places(context, target)
    both = x.new_empty((x.shape[0] + targets.shape[0], x.shape[1]), dtype=torch.promote_types(x.dtype, targets.dtype))
    both = both.index_copy(0, context_places, x.to(both.dtype)).index_copy(0, target_places, targets.to(both.dtype))
    sequences = Ragged(
        context.cu_seqlens + target.cu_seqlens, longest(contexts, table.shape[0]) + longest(masks, table.shape[0])
    )
    both = run_blocks(predictor.predictor_blocks, both, None, predictor.use_activation_checkpointing, sequences)
    # LayerNorm acts on each token alone, so only the tokens that leave are normalised.
    return predictor.predictor_proj(predictor.predictor_norm(both[target_places]))


def _places(context: RaggedIds, target: RaggedIds) -> tuple[Tensor, Tensor]:
    """Where each context token and each target token stands when every sequence is its context, then its targets."""
    before_targets = context.cu_seqlens[1:]  # context tokens before the targets of each sequence
    before_context = target.cu_seqlens[:-1]
    return _shifted(context, before_context), _shifted(target, before_targets)


def _shifted(packed: RaggedIds, shift: Tensor) -> Tensor:
    place = torch.arange(packed.ids.shape[0], device=packed.ids.device)
    sequence = torch.searchsorted(packed.cu_seqlens, place, right=True) - 1
    return place + shift[sequence]
