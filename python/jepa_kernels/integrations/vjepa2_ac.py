"""The action-conditioned predictor of the official vjepa2 repository, without its dense frame-causal mask."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..attention_masks import FrameCausal
from .official import ATTENTION_ATTRIBUTES, refuse_proj_drop
from .pieces import attend_packed, dropout_reason, mask_reason, tensor_reason
from .positions import rope_of_grid
from .swap import is_patched
from .targets import Target


class FrameCausalMatrix:
    """The dense frame-causal mask of the original, of which only the corner that is asked for is built.

    Stands in for the attribute `attn_mask`, a bool matrix of (frames * tokens per frame) squared: 4.36 GB for 256 frames of 258
    tokens. `matrix[:n, :n]` is its upper left corner.
    """

    def __init__(self, frames: int, tokens_per_frame: int) -> None:
        self.frames = frames
        self.tokens_per_frame = tokens_per_frame

    @property
    def shape(self) -> tuple[int, int]:
        return (self.frames * self.tokens_per_frame,) * 2

    def __getitem__(self, corner: tuple[slice, slice]) -> Tensor:
        rows, columns = (range(size)[part] for part, size in zip(corner, self.shape, strict=True))
        frame = torch.arange(max(self.shape)) // self.tokens_per_frame
        return frame[columns.start : columns.stop][None, :] <= frame[rows.start : rows.stop][:, None]

    def matches(self, dense: Tensor) -> bool:
        """Whether a dense mask is this one; looks at it frame by frame."""
        if dense.dtype != torch.bool or tuple(dense.shape) != self.shape:
            return False
        step = self.tokens_per_frame
        return all(
            bool(rows[:, : (frame + 1) * step].all()) and not bool(rows[:, (frame + 1) * step :].any())
            for frame, rows in enumerate(dense.split(step))
        )


def _attention(
    self: Any,
    x: Tensor,
    mask: None = None,
    attn_mask: Tensor | FrameCausal | None = None,
    T: int = 0,
    H: int = 0,
    W: int = 0,
    action_tokens: int = 0,
) -> Tensor:
    qkv = self.qkv(x)
    # Spatial positions snap to the grid of training; conditioning tokens turn by their frame alone.
    scale = (1.0, self.grid_size / H, self.grid_size / W)
    rope = rope_of_grid(x.shape[1], (H, W), qkv, scale, action_tokens)
    softmax_scale = None if attn_mask is not None or self.use_sdpa else self.scale
    y = attend_packed(qkv, self.num_heads, mask=attn_mask, rope=rope, scale=softmax_scale)
    return self.proj_drop(self.proj(y))


def _attention_reason(
    self: Any,
    x: Any,
    mask: Any = None,
    attn_mask: Any = None,
    T: Any = None,
    H: Any = None,
    W: Any = None,
    action_tokens: int = 0,
) -> str | None:
    if mask is not None:
        return "token ids as mask"
    if T is None or H is None or W is None or x.shape[1] != T * (H * W + action_tokens):
        return "the token count does not fit the grid"
    if not isinstance(attn_mask, FrameCausal) and (reason := mask_reason(attn_mask)) is not None:
        return reason
    return tensor_reason(x) or dropout_reason(self, self.attn_drop.p)


def _predictor(self: Any, x: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None) -> Tensor:
    x = self.predictor_embed(x)
    batch, _, width = x.shape
    rows, columns = self.grid_height, self.grid_width
    x = x.view(batch, -1, rows * columns, width)  # [B, T, H * W, D]
    frames = x.shape[1]
    conditioning = [self.action_encoder(actions), self.state_encoder(states)]
    if self.use_extrinsics:
        conditioning.append(self.extrinsics_encoder(extrinsics))
    x = torch.cat([*(tokens.unsqueeze(2) for tokens in conditioning), x], dim=2)
    tokens_per_frame = x.shape[2]
    x = x.flatten(1, 2)
    arguments = {
        "mask": None,
        "attn_mask": FrameCausal(tokens_per_frame),
        "T": frames,
        "H": rows,
        "W": columns,
        "action_tokens": len(conditioning),
    }
    for block in self.predictor_blocks:
        run = functools.partial(checkpoint, block, use_reentrant=False) if self.use_activation_checkpointing else block
        x = run(x, **arguments)
    x = x.view(batch, frames, tokens_per_frame, width)[:, :, len(conditioning) :].flatten(1, 2)
    return self.predictor_proj(self.predictor_norm(x))


def _predictor_reason(self: Any, x: Any, actions: Any, states: Any, extrinsics: Any = None) -> str | None:
    if x.ndim != 3 or x.shape[1] % (self.grid_height * self.grid_width):
        return "the token count does not fit the grid"
    if not all(is_patched(block.attn) for block in self.predictor_blocks):
        return "a block whose attention is not patched needs the dense mask"
    if any(block.attn.training and block.attn.attn_drop.p > 0 for block in self.predictor_blocks):
        return "attention dropout in training needs the dense mask"
    return tensor_reason(x)


def _structure(self: Any) -> FrameCausalMatrix:
    frames = self.num_frames // self.tubelet_size
    return FrameCausalMatrix(frames, self.grid_height * self.grid_width + (3 if self.use_extrinsics else 2))


def _refuse_predictor(self: Any) -> str | None:
    if self.attn_mask is None or not self.use_rope:
        return "it is not frame-causal, or has no rotary embedding"
    if isinstance(self.attn_mask, Tensor) and not _structure(self).matches(self.attn_mask):
        return "its mask is not the frame-causal one"
    return None


def _drop_mask(self: Any) -> None:
    self.attn_mask = _structure(self)


def _restore_mask(self: Any) -> None:
    matrix = self.attn_mask
    self.attn_mask = matrix[: matrix.shape[0], : matrix.shape[1]]


AC_TARGETS = (
    Target(
        "vjepa2",
        "ACRoPEAttention",
        (("x", "mask", "attn_mask", "T", "H", "W", "action_tokens"),),
        (*ATTENTION_ATTRIBUTES, "proj_drop_prob", "use_sdpa", "is_causal", "grid_size"),
        "one projection for all tokens; rotary embedding and frame-causal mask inside the kernel",
        _attention,
        _attention_reason,
        refuse_proj_drop,
        around=1,
    ),
    Target(
        "vjepa2",
        "VisionTransformerPredictorAC",
        (("x", "actions", "states", "extrinsics"),),
        ("predictor_embed", "predictor_blocks", "attn_mask", "grid_height", "grid_width", "use_extrinsics", "action_encoder"),
        "runs without its dense mask, whose memory is freed",
        _predictor,
        _predictor_reason,
        _refuse_predictor,
        around=0,
        install=_drop_mask,
        uninstall=_restore_mask,
    ),
)
