"""The official jepa repository (V-JEPA): encoder attention and embedding of the kept tokens; from its interfaces alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .official import (
    ATTENTION_ATTRIBUTES,
    block_parameters,
    keep_reason,
    plain_attention,
    plain_attention_reason,
    refuse_proj_drop,
    working_dtype,
)
from .targets import Target

_BLOCK = ("x", "return_attention", "mask")


def _attention(self: Any, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
    # The mask holds token ids, which attention without rotary positions ignores.
    return plain_attention(self, x), None


def _attention_reason(self: Any, x: Any, mask: Any = None) -> str | None:
    return plain_attention_reason(self, x)


def _encoder(self: Any, x: Tensor, masks: Any = None) -> Any:
    if masks is not None and not isinstance(masks, list):
        masks = [masks]
    positions = None if self.pos_embed is None else self.interpolate_pos_encoding(x, self.pos_embed)
    x = self.patch_embed(x, keep=masks, pos_embed=positions)
    x = x.to(working_dtype(self.patch_embed.proj.weight))  # the original adds the positions in place
    ids = None if masks is None else torch.cat(masks, dim=0)
    outs = []
    for index, block in enumerate(self.blocks):
        x = block(x, mask=ids)
        if self.out_layers is not None and index in self.out_layers:
            outs.append(self.norm(x))
    if self.out_layers is not None:
        return outs
    return x if self.norm is None else self.norm(x)


def _encoder_reason(self: Any, x: Any, masks: Any = None) -> str | None:
    return keep_reason(self, x, masks)


def _refuse_attention(self: Any) -> str | None:
    if not self.use_sdpa:
        return "use_sdpa is off: its attention weights are part of the result"
    return refuse_proj_drop(self)


TARGETS = (
    Target(
        "jepa",
        "Attention",
        (("x", "mask"),),
        (*ATTENTION_ATTRIBUTES, "proj_drop_prob", "use_sdpa"),
        "attention in one kernel",
        _attention,
        _attention_reason,
        _refuse_attention,
        lambda parent: block_parameters(parent) == _BLOCK,
        around=1,
    ),
    Target(
        "jepa",
        "VisionTransformer",
        (("x", "masks"),),
        ("patch_embed", "blocks", "norm", "out_layers", "pos_embed", "tubelet_size", "is_video"),
        "embeds the kept tokens only",
        _encoder,
        _encoder_reason,
        lambda self: "it has rotary positions" if hasattr(self, "use_rope") else None,
    ),
)
