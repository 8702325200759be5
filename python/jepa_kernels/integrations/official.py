"""What the official vjepa2, jepa and ijepa repositories share: packed attention and patch embeddings by class name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .pieces import attend_packed, conv_reason, dropout_reason, embed, mask_reason, refuse_conv, tensor_reason
from .swap import is_patched
from .targets import Target, parameter_names

ATTENTION_ATTRIBUTES = ("num_heads", "scale", "qkv", "attn_drop", "proj", "proj_drop")


def block_parameters(parent: nn.Module | None) -> tuple[str, ...]:
    """Parameter names of the forward of a module's parent: they tell attention classes of one name apart."""
    if parent is None:
        return ()
    return parameter_names(next(cls for cls in type(parent).__mro__ if "forward" in cls.__dict__))


def plain_attention(self: Any, x: Tensor, mask: Any = None, scale: float | None = None) -> Tensor:
    """qkv, attention, projection: (B, N, C) -> (B, N, C)."""
    return self.proj_drop(self.proj(attend_packed(self.qkv(x), self.num_heads, mask=mask, scale=scale)))


def plain_attention_reason(self: Any, x: Any, mask: Any = None) -> str | None:
    """None, or why a call of an attention keeps the original forward."""
    return tensor_reason(x) or mask_reason(mask) or dropout_reason(self, self.attn_drop.p)


def refuse_proj_drop(self: Any) -> str | None:
    """V-JEPA's code passes proj_drop as the dropout of its attention weights, and does so in evaluation, too."""
    if self.proj_drop_prob > 0:
        return f"proj_drop is {self.proj_drop_prob}: the original drops attention weights with it, even in evaluation"
    if getattr(self, "is_causal", False):
        return "is_causal is set"
    return None


def patches(self: Any, x: Tensor, keep: list[Tensor] | None = None, pos_embed: Tensor | None = None, **kwargs: Any) -> Tensor:
    """Tokens of all patches, or of those in `keep`; `kwargs` are ignored as in the original."""
    return embed(x, self.proj, keep=keep, pos_embed=pos_embed)


def patches_reason(self: Any, x: Any, keep: Any = None, pos_embed: Any = None, **kwargs: Any) -> str | None:
    """None, or why the patches must go through the convolution; `keep` is only given where that is known to be None."""
    return None if keep is not None or pos_embed is not None else conv_reason(x, self.proj)


def keep_reason(self: Any, x: Any, masks: Any) -> str | None:
    """None, or why a vision transformer must embed all tokens before it drops those that no mask keeps."""
    embedding = self.patch_embed
    if not is_patched(embedding):
        return "its patch embedding is not patched"
    if embedding._forward_hooks or embedding._forward_pre_hooks or embedding._backward_hooks:
        return "the patch embedding has hooks, which see all tokens"
    if masks is not None:
        masks = masks if isinstance(masks, list) else [masks]
        if not masks or any(ids.shape != masks[0].shape for ids in masks):
            return "no mask, or masks of several lengths"
        if masks[0].ndim != 2 or masks[0].shape[0] != x.shape[0]:
            return "masks that are not (B, K)"
    return conv_reason(x, embedding.proj)


def working_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of what a layer with this weight returns: autocast's, if that is on."""
    kind = weight.device.type
    casts = torch.is_autocast_enabled(kind) and weight.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else weight.dtype


def patch_probe(self: Any) -> Tensor:
    """Pixels of two patches, to compare with the original."""
    weight = self.proj.weight
    height, width = weight.shape[-2:]
    return torch.randn(1, weight.shape[1], *weight.shape[2:-2], height, 2 * width, device=weight.device, dtype=weight.dtype)


def attention_probe(self: Any) -> Tensor:
    """Three tokens, to compare with the original."""
    weight = self.proj.weight
    return torch.randn(1, 3, self.qkv.in_features, device=weight.device, dtype=weight.dtype)


TARGETS = tuple(
    Target(
        "official",
        name,
        (("x",), ("x", "**kwargs")),
        ("patch_size", "proj"),
        "patches multiplied as one matrix product",
        patches,
        patches_reason,
        lambda self: refuse_conv(self.proj),
        probe=patch_probe,
    )
    for name in ("PatchEmbed", "PatchEmbed3D")
)
