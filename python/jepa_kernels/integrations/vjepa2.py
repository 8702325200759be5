"""The official vjepa2 repository: encoder, predictor, AC predictor, and what lives in the closures of its training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .official import (
    ATTENTION_ATTRIBUTES,
    attention_probe,
    block_parameters,
    keep_reason,
    plain_attention,
    plain_attention_reason,
    refuse_proj_drop,
    working_dtype,
)
from .pieces import attend_packed, dropout_reason, mask_reason, tensor_reason
from .positions import rope_of_grid, rope_of_ids
from .targets import Target
from .vjepa2_ac import AC_TARGETS
from .vjepa2_training import TrainStepHooks, train_step_hooks

__all__ = ["TARGETS", "TrainStepHooks", "train_step_hooks"]

_BLOCK = ("x", "mask", "attn_mask", "T", "H_patches", "W_patches")
_AC_BLOCK = ("x", "mask", "attn_mask", "T", "H", "W", "action_tokens")


def _scale(self: Any, attn_mask: Any) -> float | None:
    """The original hands `scale` to its own softmax only; scaled_dot_product_attention takes its default."""
    return None if attn_mask is not None or self.use_sdpa else self.scale


def _attention(self: Any, x: Tensor, mask: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
    return plain_attention(self, x, attn_mask, _scale(self, attn_mask))


def _attention_reason(self: Any, x: Any, mask: Any = None, attn_mask: Any = None) -> str | None:
    return plain_attention_reason(self, x, attn_mask)


def _rope_attention(
    self: Any,
    x: Tensor,
    mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    T: int | None = None,
    H_patches: int | None = None,
    W_patches: int | None = None,
) -> Tensor:
    qkv = self.qkv(x)
    grid = _grid(self, H_patches, W_patches)
    rope = rope_of_grid(x.shape[1], grid, qkv) if mask is None else rope_of_ids(mask, grid, qkv)
    y = attend_packed(qkv, self.num_heads, mask=attn_mask, rope=rope, scale=_scale(self, attn_mask))
    return self.proj_drop(self.proj(y))


def _grid(self: Any, rows: int | None, columns: int | None) -> tuple[int, int]:
    return (self.grid_size, self.grid_size) if rows is None or columns is None else (rows, columns)


def _rope_attention_reason(
    self: Any,
    x: Any,
    mask: Any = None,
    attn_mask: Any = None,
    T: Any = None,
    H_patches: Any = None,
    W_patches: Any = None,
) -> str | None:
    reason = tensor_reason(x) or mask_reason(attn_mask) or dropout_reason(self, self.attn_drop.p)
    if reason is None and mask is None:
        rows, columns = _grid(self, H_patches, W_patches)
        frames = x.shape[1] // self.grid_size**2 if T is None or H_patches is None or W_patches is None else T
        if frames * rows * columns != x.shape[1]:
            return "the token count does not fit the grid"
    return reason


def _encoder(self: Any, x: Tensor, masks: Any = None) -> Any:
    frames = x.shape[2] // self.tubelet_size if x.ndim == 5 else 1
    sizes = {"T": frames, "H_patches": x.shape[-2] // self.patch_size, "W_patches": x.shape[-1] // self.patch_size}
    if not self.handle_nonsquare_inputs:
        sizes = dict.fromkeys(sizes)
    if masks is not None and not isinstance(masks, list):
        masks = [masks]
    positions = None if self.use_rope else self.interpolate_pos_encoding(x, self.pos_embed)
    x = self.patch_embed(x, keep=masks, pos_embed=positions)
    if positions is not None:
        x = x.to(working_dtype(self.patch_embed.proj.weight))  # the original adds the positions in place
    ids = None if masks is None else torch.cat(masks, dim=0)
    outs = []
    for index, block in enumerate(self.blocks):
        if self.use_activation_checkpointing:
            x = checkpoint(block, x, ids, None, **sizes, use_reentrant=False)
        else:
            x = block(x, mask=ids, attn_mask=None, **sizes)
        if self.out_layers is not None and index in self.out_layers:
            outs.append(self.norm(x))
    if self.out_layers is not None:
        return outs
    return x if self.norm is None else self.norm(x)


def _encoder_reason(self: Any, x: Any, masks: Any = None) -> str | None:
    return keep_reason(self, x, masks)


def _predictor(self: Any, x: Tensor, masks_x: Any, masks_y: Any, mask_index: int = 1, has_cls: bool = False) -> Tensor:
    context_ids, target_ids = _single(masks_x), _single(masks_y)
    x = self.predictor_embed(x)
    context = x.shape[1]
    targets = self.mask_tokens[mask_index % self.num_mask_tokens].expand(*target_ids.shape, -1)
    if not self.use_rope:
        x += self.predictor_pos_embed[0][context_ids]
        targets = targets + self.predictor_pos_embed[0][target_ids]
    # The original sorts the tokens by id and inverts that before the slice below. Attention with positions from the ids
    # commutes with any permutation of the tokens, and all else in a block acts on each token alone.
    x = torch.cat([x, targets], dim=1)
    ids = torch.cat([context_ids, target_ids], dim=1)
    for block in self.predictor_blocks:
        if self.use_activation_checkpointing:
            x = checkpoint(block, x, ids, None, use_reentrant=False)
        else:
            x = block(x, mask=ids, attn_mask=None)
    return self.predictor_proj(self.predictor_norm(x)[:, context:])


def _single(masks: Any) -> Tensor:
    return masks[0] if isinstance(masks, list) else masks


def _predictor_reason(self: Any, x: Any, masks_x: Any, masks_y: Any, mask_index: int = 1, has_cls: bool = False) -> str | None:
    if has_cls:
        return "has_cls"
    if self.return_all_tokens or self.chop_last_n_tokens > 0:
        return "return_all_tokens or chop_last_n_tokens, which see the sorted order"
    if self.mask_tokens is None:
        return "no mask tokens"
    if any(getattr(block.attn, "is_causal", False) for block in self.predictor_blocks):
        return "causal attention, which sees the sorted order"
    for masks in (masks_x, masks_y):
        if masks is None or (isinstance(masks, list) and len(masks) != 1):
            return "not one mask for context and target"
        if _single(masks).ndim != 2 or _single(masks).shape[0] != x.shape[0]:
            return "a mask that is not (B, K)"
    return tensor_reason(x)


_ROPE_ATTRIBUTES = (*ATTENTION_ATTRIBUTES, "proj_drop_prob", "use_sdpa", "is_causal", "grid_size")
_DROP = refuse_proj_drop

TARGETS = (
    Target(
        "vjepa2",
        "RoPEAttention",
        (_BLOCK,),
        _ROPE_ATTRIBUTES,
        "attention with the rotary embedding and its tables inside the kernel",
        _rope_attention,
        _rope_attention_reason,
        _DROP,
        around=1,
    ),
    Target(
        "vjepa2",
        "Attention",
        (("x", "mask", "attn_mask"),),
        (*ATTENTION_ATTRIBUTES, "proj_drop_prob", "use_sdpa", "is_causal"),
        "attention in one kernel",
        _attention,
        _attention_reason,
        _DROP,
        lambda parent: parent is None or block_parameters(parent) in (_BLOCK, _AC_BLOCK),
        probe=attention_probe,
        around=1,
    ),
    Target(
        "vjepa2",
        "VisionTransformer",
        (("x", "masks"),),
        ("patch_embed", "blocks", "norm", "out_layers", "use_rope", "handle_nonsquare_inputs", "tubelet_size"),
        "embeds the kept tokens only",
        _encoder,
        _encoder_reason,
    ),
    Target(
        "vjepa2",
        "VisionTransformerPredictor",
        (("x", "masks_x", "masks_y", "mask_index", "has_cls"),),
        ("predictor_embed", "mask_tokens", "predictor_blocks", "predictor_norm", "predictor_proj", "chop_last_n_tokens"),
        "runs without sorting its tokens",
        _predictor,
        _predictor_reason,
        around=0,
        plain_signatures=(("x", "masks_x", "masks"), ("ctxt", "tgt", "masks_ctxt", "masks_tgt", "mask_index")),
    ),
    *AC_TARGETS,
)
