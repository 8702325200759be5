"""What the replacement forwards of several code bases share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functional.masked_attention import masked_attention
from ..functional.patch_embed import patch_embed
from ..rope import Rope3D

_DEVICES = ("cpu", "cuda")


def tensor_reason(x: Any) -> str | None:
    """None, or why an activation cannot go into the operators."""
    if not isinstance(x, Tensor):
        return f"the input is a {type(x).__name__}"
    if x.is_nested:
        return "the input is a nested tensor"
    if x.device.type not in _DEVICES:
        return f"the input is on {x.device.type}"
    return None if x.is_floating_point() else f"the input has dtype {x.dtype}"


def dropout_reason(module: nn.Module, probability: float) -> str | None:
    """None, or that attention dropout is active, which the kernels lack."""
    return f"attention dropout {probability} in training" if module.training and probability > 0 else None


def mask_reason(mask: Any) -> str | None:
    """None, or why an attention mask cannot go into the operator."""
    if mask is None or (isinstance(mask, Tensor) and mask.dtype == torch.bool):
        return None
    return f"an attention mask of dtype {mask.dtype}" if isinstance(mask, Tensor) else f"a {type(mask).__name__} as mask"


def attend_packed(
    qkv: Tensor, heads: int, *, mask: Any = None, rope: Rope3D | None = None, scale: float | None = None
) -> Tensor:
    """Attention over a projection's output (B, N, 3 * H * D): (B, N, H * D)."""
    batch, tokens, width = qkv.shape
    qkv = qkv.view(batch, tokens, 3, heads, width // (3 * heads))
    y = masked_attention(qkv, mask=mask, rope=rope, scale=scale)  # [B, H, N, D]
    return y.transpose(1, 2).reshape(batch, tokens, width // 3)


def conv_reason(x: Any, conv: nn.Module) -> str | None:
    """None, or why patches must go through the convolution itself."""
    if type(conv) not in (nn.Conv2d, nn.Conv3d):
        return f"the projection is a {type(conv).__name__}"
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.device.type not in _DEVICES:
        return "the pixels are no floating-point tensor on a CPU or GPU"
    if x.ndim != conv.weight.ndim or x.shape[1] != conv.weight.shape[1]:
        return "the pixels do not fit the projection"
    if conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks:
        return "the projection has hooks"
    if any(size % step for size, step in zip(x.shape[2:], conv.weight.shape[2:], strict=True)):
        return "the frame is not divisible into patches"
    if x.dtype != conv.weight.dtype and not torch.is_autocast_enabled(x.device.type):
        return f"pixels of dtype {x.dtype} for a weight of {conv.weight.dtype}"
    return None


def refuse_conv(conv: Any) -> str | None:
    """None, or why this convolution is not a patch embedding."""
    if type(conv) not in (nn.Conv2d, nn.Conv3d):
        return f"its projection is a {type(conv).__name__}, not a plain convolution"
    if conv.kernel_size != conv.stride:
        return f"its kernel {conv.kernel_size} is not its stride {conv.stride}"
    if any(conv.padding) or any(step != 1 for step in conv.dilation) or conv.groups != 1:
        return "its convolution has padding, dilation or groups"
    return None


def embed(x: Tensor, conv: nn.Module, **options: Any) -> Tensor:
    """Patches to tokens (B, N, D) with a convolution's parameters; `options` as for `jk.patch_embed`."""
    return patch_embed(x, conv.weight, conv.bias, **options)
