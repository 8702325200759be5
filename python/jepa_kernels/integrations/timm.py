"""timm: attention of its vision transformers and of EVA, and the patch embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attention_masks import FrameCausal
from ..functional.masked_attention import masked_attention
from .official import attention_probe
from .pieces import attend_packed, conv_reason, dropout_reason, embed, mask_reason, refuse_conv, tensor_reason
from .targets import Target


def _reason(self: Any, x: Any, attn_mask: Any = None, is_causal: bool = False) -> str | None:
    if attn_mask is not None and is_causal:
        return "both attn_mask and is_causal"
    return tensor_reason(x) or mask_reason(attn_mask) or dropout_reason(self, self.attn_drop.p)


def _mask(attn_mask: Tensor | None, is_causal: bool) -> Tensor | FrameCausal | None:
    return FrameCausal(1) if is_causal else attn_mask


def _scale(self: Any) -> float | None:
    """scaled_dot_product_attention takes its default, the code without it `scale`."""
    return None if self.fused_attn else self.scale


def _finish(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """What follows attention: norm, gate, projection."""
    y = y if getattr(self, "norm", None) is None else self.norm(y)
    gate = getattr(self, "gate", None)
    if gate is not None:
        y = y * gate(x).sigmoid()
    return self.proj_drop(self.proj(y))


def _attention(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    mask = _mask(attn_mask, is_causal)
    qkv = self.qkv(x)
    if isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity):
        return _finish(self, x, attend_packed(qkv, self.num_heads, mask=mask, scale=_scale(self)))
    q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    y = masked_attention(self.q_norm(q), self.k_norm(k), v, mask=mask, scale=_scale(self))
    return _finish(self, x, y.transpose(1, 2).flatten(2))


def _eva_reason(self: Any, x: Any, rope: Any = None, attn_mask: Any = None, is_causal: bool = False) -> str | None:
    return _reason(self, x, attn_mask, is_causal)


def _eva_attention(
    self: Any, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    q, k, v = _eva_heads(self, x)
    q, k = self.q_norm(q), self.k_norm(k)
    if rope is not None:
        half = getattr(self, "rotate_half", False)
        q, k = (_rotated(part, rope, self.num_prefix_tokens, half).type_as(v) for part in (q, k))
    y = masked_attention(q, k, v, mask=_mask(attn_mask, is_causal), scale=_scale(self))
    return _finish(self, x, y.transpose(1, 2).flatten(2))


def _eva_heads(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if self.qkv is None:
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if getattr(self, "q_bias", None) is None:
        qkv = self.qkv(x)
    else:
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = self.qkv(x) + bias if self.qkv_bias_separate else functional.linear(x, self.qkv.weight, bias)
    q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _rotated(x: Tensor, rope: Tensor, prefix: int, half: bool) -> Tensor:
    """timm's rotary embedding: `rope` holds sin and cos side by side, the first `prefix` tokens stay as they are."""
    sin, cos = rope.chunk(2, -1)
    body = x[:, :, prefix:]
    if half:
        low, high = body.chunk(2, -1)
        partner = torch.cat([-high, low], -1)
    else:
        partner = torch.stack([-body[..., 1::2], body[..., ::2]], -1).flatten(-2)
    return torch.cat([x[:, :, :prefix], body * cos + partner * sin], dim=2)


def _refuse_eva(self: Any) -> str | None:
    if getattr(self, "num_kv_groups", 1) > 1:
        return "it has grouped queries"
    return None


def _patches(self: Any, x: Tensor) -> Tensor:
    return self.norm(embed(x, self.proj))


def _patches_reason(self: Any, x: Any) -> str | None:
    if self.img_size is not None and self.strict_img_size and tuple(x.shape[-2:]) != tuple(self.img_size):
        return "the image has another size than the model"  # which the original reports
    return conv_reason(x, self.proj)


def _refuse_patches(self: Any) -> str | None:
    if not self.flatten:
        return "its output is not flattened to tokens"
    return refuse_conv(self.proj)


_EVA_SIGNATURES = (("x", "rope", "attn_mask", "is_causal"), ("x", "rope", "attn_mask"))
_EVA_ATTRIBUTES = ("num_heads", "num_prefix_tokens", "qkv", "q_proj", "q_norm", "k_norm", "attn_drop", "proj", "fused_attn")

TARGETS = (
    Target(
        "timm",
        "Attention",
        (("x",), ("x", "attn_mask"), ("x", "attn_mask", "is_causal")),
        ("num_heads", "scale", "fused_attn", "qkv", "q_norm", "k_norm", "attn_drop", "proj", "proj_drop"),
        "attention in one kernel",
        _attention,
        _reason,
        probe=attention_probe,
        around=1,
    ),
    *(
        Target(
            "timm",
            name,
            _EVA_SIGNATURES,
            _EVA_ATTRIBUTES,
            "attention in one kernel, after timm's rotary embedding",
            _eva_attention,
            _eva_reason,
            _refuse_eva,
            around=1,
        )
        for name in ("EvaAttention", "AttentionRope")
    ),
    Target(
        "timm",
        "PatchEmbed",
        (("x",),),
        ("proj", "norm", "flatten", "img_size", "strict_img_size", "dynamic_img_pad"),
        "patches multiplied as one matrix product",
        _patches,
        _patches_reason,
        _refuse_patches,
    ),
)
