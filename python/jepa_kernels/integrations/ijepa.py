"""The official ijepa repository: attention without the score matrix, embedding of the kept tokens; from its interfaces alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .official import (
    ATTENTION_ATTRIBUTES,
    attention_probe,
    block_parameters,
    keep_reason,
    plain_attention,
    plain_attention_reason,
)
from .pieces import tensor_reason
from .swap import count_fallback, run_original
from .targets import Target

_BLOCK = ("x", "return_attention")


def _attention(self: Any, x: Tensor) -> tuple[Tensor, None]:
    return plain_attention(self, x, scale=self.scale), None


def _block(self: Any, x: Tensor, return_attention: bool = False) -> Tensor:
    if return_attention:  # the weights exist in the original forward alone
        count_fallback(self.attn, "the attention weights were asked for")
        return run_original(self.attn, self.norm1(x))[1]
    return run_original(self, x)


def _block_reason(self: Any, x: Any, return_attention: bool = False) -> str | None:
    return tensor_reason(x)


def _encoder(self: Any, x: Tensor, masks: Any = None) -> Tensor:
    if masks is not None and not isinstance(masks, list):
        masks = [masks]
    x = self.patch_embed(x, keep=masks, pos_embed=self.pos_embed)
    for block in self.blocks:
        x = block(x)
    return x if self.norm is None else self.norm(x)


def _encoder_reason(self: Any, x: Any, masks: Any = None) -> str | None:
    reason = keep_reason(self, x, masks)
    if reason is not None:
        return reason
    rows, columns = (size // step for size, step in zip(x.shape[-2:], self.patch_embed.proj.weight.shape[-2:], strict=True))
    return None if rows * columns == self.pos_embed.shape[1] else "another image size, whose positions are interpolated"


TARGETS = (
    Target(
        "ijepa",
        "Attention",
        (("x",),),
        ATTENTION_ATTRIBUTES,
        "attention in one kernel, without the score matrix; None in the place of the weights",
        _attention,
        plain_attention_reason,
        accepts_parent=lambda parent: block_parameters(parent) == _BLOCK,
        probe=attention_probe,
        around=1,
    ),
    Target(
        "ijepa",
        "Block",
        (_BLOCK,),
        ("norm1", "attn", "drop_path", "norm2", "mlp"),
        "still gives the attention weights to whom asks for them",
        _block,
        _block_reason,
        plain_signatures=(("*",),),
    ),
    Target(
        "ijepa",
        "VisionTransformer",
        (("x", "masks"),),
        ("patch_embed", "blocks", "norm", "pos_embed", "num_heads"),
        "embeds the kept tokens only",
        _encoder,
        _encoder_reason,
        lambda self: "it has out_layers" if hasattr(self, "out_layers") else None,
    ),
)
