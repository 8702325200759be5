"""The official dinov2 repository: attention, patch embedding, and the teacher update of its training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..attention_masks import FrameCausal
from ..functional.ema_update import ema_update_
from .official import attention_probe, block_parameters, patch_probe, plain_attention
from .pieces import conv_reason, dropout_reason, embed, refuse_conv, tensor_reason
from .targets import Target


def update_teacher(student: Any, teacher: Any, m: float) -> None:
    """teacher <- m * teacher + (1 - m) * student for every parameter, in one call; see `jk.ema_update_`.

    `student` and `teacher` are modules, or mappings of them with the same keys, such as dinov2's `ModuleDict`s.

    Raises:
        ValueError: a key of the student is missing in the teacher, and whatever `jk.ema_update_` refuses.

    Example:
        >>> import torch
        >>> student, teacher = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).requires_grad_(False)
        >>> update_teacher({"backbone": student}, {"backbone": teacher}, 0.0)
        >>> torch.equal(student.weight, teacher.weight)
        True
    """
    pairs = [(student, teacher)]
    if isinstance(student, (Mapping, nn.ModuleDict)):
        missing = [key for key in student if key not in teacher]
        if missing:
            raise ValueError(f"update_teacher: the teacher has no {', '.join(missing)}; give it the keys of the student")
        pairs = [(student[key], teacher[key]) for key in student]
    online = [parameter for ours, _ in pairs for parameter in ours.parameters()]
    targets = [parameter for _, theirs in pairs for parameter in theirs.parameters()]
    ema_update_(targets, online, m)


def _attention(self: Any, x: Tensor, is_causal: bool = False) -> Tensor:
    return plain_attention(self, x, FrameCausal(1) if is_causal else None)


def _attention_reason(self: Any, x: Any, is_causal: bool = False) -> str | None:
    return tensor_reason(x) or dropout_reason(self, self.attn_drop)


def _efficient_attention(self: Any, x: Tensor, attn_bias: None = None) -> Tensor:
    return plain_attention(self, x)


def _efficient_reason(self: Any, x: Any, attn_bias: Any = None) -> str | None:
    if attn_bias is not None:
        return "an attention bias of xFormers"
    return _attention_reason(self, x)


def _patches(self: Any, x: Tensor) -> Tensor:
    return self.norm(embed(x, self.proj))


def _patches_reason(self: Any, x: Any) -> str | None:
    return conv_reason(x, self.proj)


def _refuse_patches(self: Any) -> str | None:
    if not self.flatten_embedding:
        return "its output is not flattened to tokens"
    return refuse_conv(self.proj)


def _refuse_drop(self: Any) -> str | None:
    return None if isinstance(self.attn_drop, float) else f"attn_drop is a {type(self.attn_drop).__name__}"


_ATTRIBUTES = ("num_heads", "scale", "qkv", "attn_drop", "proj", "proj_drop", "init_weights")

TARGETS = (
    Target(
        "dinov2",
        "Attention",
        (("x", "is_causal"),),
        _ATTRIBUTES,
        "attention in one kernel",
        _attention,
        _attention_reason,
        _refuse_drop,
        lambda parent: block_parameters(parent) != ("x", "return_attention"),
        probe=attention_probe,
        around=1,
    ),
    Target(
        "dinov2",
        "MemEffAttention",
        (("x", "attn_bias"),),
        _ATTRIBUTES,
        "attention in one kernel",
        _efficient_attention,
        _efficient_reason,
        _refuse_drop,
        probe=attention_probe,
        around=1,
    ),
    Target(
        "dinov2",
        "PatchEmbed",
        (("x",),),
        ("patch_size", "proj", "norm", "flatten_embedding"),
        "patches multiplied as one matrix product",
        _patches,
        _patches_reason,
        _refuse_patches,
        probe=patch_probe,
    ),
)
