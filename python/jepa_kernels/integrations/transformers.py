"""Hugging Face transformers: V-JEPA 2 and I-JEPA (4.57 and 5), and an attention function for any of its models."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..attention_masks import FrameCausal
from ..functional.masked_attention import masked_attention
from .pieces import conv_reason, dropout_reason, embed, mask_reason, refuse_conv, tensor_reason
from .positions import rope_of_grid, rope_of_ids
from .targets import Target

NAME = "jepa_kernels"


def register_attention() -> None:
    """Registers `attn_implementation="jepa_kernels"` with transformers; `jk.patch` does not need it.

    Models then load with `from_pretrained(..., attn_implementation="jepa_kernels")`, or change with
    `model.set_attn_implementation("jepa_kernels")`. Attention alone runs on `jk.masked_attention`: rotary embedding is
    applied before, by the model. Calls that the kernels lack (grouped queries, float masks, dropout) run on transformers'
    own "sdpa" function.

    Raises:
        ImportError: transformers is not installed, or is older than 4.57.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: q, k, v (B, H, N, D) to (B, N, H, D), and no weights."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    causal = causal and attention_mask is None and query.shape[2] > 1
    lacking = (
        dropout > 0
        or query.shape[:2] != key.shape[:2]
        or query.shape[-1] != key.shape[-1]
        or value.shape != key.shape
        or (causal and query.shape[2] != key.shape[2])
        or mask_reason(attention_mask) is not None
        or tensor_reason(query) is not None
        or any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "cache", "sliding_window", "s_aux"))
    )
    if lacking:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    mask = FrameCausal(1) if causal else attention_mask
    y = masked_attention(query, key, value, mask=mask, scale=scaling)
    return y.transpose(1, 2), None


def _wants_weights(module: Any, output_attentions: bool = False) -> bool:
    """Whether the caller reads the attention weights, which only the eager implementation of transformers returns."""
    config = module.config
    if config._attn_implementation != "eager":
        return False
    if output_attentions or getattr(config, "output_attentions", False) or torch.compiler.is_compiling():
        return True
    capturing = sys.modules.get("transformers.utils.output_capturing")
    collected = capturing._active_collector.get() if capturing is not None else None
    # transformers 4 captures by a forward on the instance.
    return "forward" in module.__dict__ or (collected is not None and "attentions" in collected)


def _heads(x: Tensor, size: int) -> Tensor:
    """(B, N, H * D) -> (B, H, N, D), a view."""
    return x.view(*x.shape[:2], -1, size).transpose(1, 2)


def _merged(y: Tensor) -> Tensor:
    """(B, H, N, D) -> (B, N, H * D), a view of what `masked_attention` returns."""
    return y.transpose(1, 2).flatten(2)


def _rope_attention(
    self: Any, hidden_states: Tensor, position_mask: Tensor | None = None, output_attentions: bool = False, head_mask: None = None
) -> tuple[Any, ...]:
    size = self.attention_head_size
    q, k, v = (_heads(layer(hidden_states), size) for layer in (self.query, self.key, self.value))
    grid = (self.grid_size, self.grid_size)
    rope = rope_of_grid(q.shape[2], grid, q) if position_mask is None else rope_of_ids(position_mask, grid, q)
    out = self.proj(_merged(masked_attention(q, k, v, rope=rope, scale=self.scaling)))
    if "output_attentions" in _parameters(self) and not output_attentions:
        return (out,)
    return out, None


def _parameters(module: Any) -> tuple[str, ...]:
    """Parameter names of the forward; transformers 4 and 5 return tuples of other lengths."""
    code = type(module).forward.__wrapped__.__code__
    return code.co_varnames[: code.co_argcount]


def _rope_attention_reason(
    self: Any,
    hidden_states: Any,
    position_mask: Any = None,
    output_attentions: bool = False,
    head_mask: Any = None,
) -> str | None:
    if head_mask is not None:
        return "a head mask"
    if _wants_weights(self, output_attentions):
        return "the attention weights were asked for"
    return tensor_reason(hidden_states) or dropout_reason(self, self.dropout_prob)


def _pooler_attention(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, None]:
    q, k, v = (_heads(layer(hidden_states), self.head_dim) for layer in (self.q_proj, self.k_proj, self.v_proj))
    return self.out_proj(_merged(masked_attention(q, k, v, mask=attention_mask, scale=self.scale))), None


def _pooler_attention_reason(self: Any, hidden_states: Any, attention_mask: Any = None) -> str | None:
    if _wants_weights(self):
        return "the attention weights were asked for"
    return tensor_reason(hidden_states) or mask_reason(attention_mask) or dropout_reason(self, self.dropout)


def _ijepa_attention(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    q, k, v = (_heads(layer(hidden_states), self.head_dim) for layer in (self.q_proj, self.k_proj, self.v_proj))
    return self.o_proj(_merged(masked_attention(q, k, v, mask=attention_mask, scale=self.scaling))), None


def _ijepa_attention_reason(self: Any, hidden_states: Any, attention_mask: Any = None, **kwargs: Any) -> str | None:
    if _wants_weights(self, kwargs.get("output_attentions", False)):
        return "the attention weights were asked for"
    return tensor_reason(hidden_states) or mask_reason(attention_mask) or dropout_reason(self, self.attention_dropout)


def _ijepa_self_attention(self: Any, hidden_states: Tensor, head_mask: None = None) -> tuple[Tensor, None]:
    size = self.attention_head_size
    q, k, v = (_heads(layer(hidden_states), size) for layer in (self.query, self.key, self.value))
    return _merged(masked_attention(q, k, v, scale=self.scaling)), None


def _ijepa_self_attention_reason(self: Any, hidden_states: Any, head_mask: Any = None) -> str | None:
    return _rope_attention_reason(self, hidden_states, head_mask=head_mask)


def _patches_3d(self: Any, pixel_values_videos: Tensor) -> Tensor:
    return embed(pixel_values_videos, self.proj)


def _patches_2d(self: Any, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
    return embed(pixel_values, self.projection)


def _patches_2d_reason(self: Any, pixel_values: Any, interpolate_pos_encoding: bool = True) -> str | None:
    if not interpolate_pos_encoding and tuple(pixel_values.shape[-2:]) != tuple(self.image_size):
        return "the image has another size than the model"  # which the original reports
    return conv_reason(pixel_values, self.projection)


def _predictor_embeddings(
    self: Any, hidden_states: Tensor, context_mask: list[Tensor], target_mask: list[Tensor], mask_index: int = 1
) -> tuple[Tensor, Tensor]:
    context_ids, target_ids = context_mask[0], target_mask[0]
    target = self.mask_tokens[mask_index % self.num_mask_tokens].expand(*target_ids.shape, -1)
    embeddings = torch.cat([self.predictor_embeddings(hidden_states), target], dim=1)
    return embeddings, torch.cat([context_ids, target_ids], dim=1)


def _predictor_embeddings_reason(
    self: Any, hidden_states: Any, context_mask: Any, target_mask: Any, mask_index: int = 1
) -> str | None:
    if len(context_mask) != 1 or len(target_mask) != 1:
        return "more than one mask"
    if target_mask[0].ndim != 2 or target_mask[0].shape[0] != hidden_states.shape[0]:
        return "a target mask that is not (B, K)"
    return tensor_reason(hidden_states)


_FUSED = "attention with the rotary embedding and its tables inside the kernel"
_ATTENTION = "attention in one kernel"
_CONVOLUTION = "patches multiplied as one matrix product"

TARGETS = (
    Target(
        "transformers",
        "VJEPA2RopeAttention",
        (("hidden_states", "position_mask"), ("hidden_states", "position_mask", "output_attentions", "head_mask")),
        ("config", "query", "key", "value", "proj", "grid_size", "attention_head_size", "scaling", "dropout_prob"),
        _FUSED,
        _rope_attention,
        _rope_attention_reason,
        around=1,
    ),
    Target(
        "transformers",
        "VJEPA2PoolerSelfAttention",
        (("hidden_states", "attention_mask"),),
        ("config", "q_proj", "k_proj", "v_proj", "out_proj", "head_dim", "scale", "dropout"),
        _ATTENTION,
        _pooler_attention,
        _pooler_attention_reason,
        around=1,
    ),
    Target(
        "transformers",
        "VJEPA2PatchEmbeddings3D",
        (("pixel_values_videos",),),
        ("proj",),
        _CONVOLUTION,
        _patches_3d,
        lambda self, pixel_values_videos: conv_reason(pixel_values_videos, self.proj),
        lambda self: refuse_conv(self.proj),
    ),
    Target(
        "transformers",
        "VJEPA2PredictorEmbeddings",
        (("hidden_states", "context_mask", "target_mask", "mask_index"),),
        ("predictor_embeddings", "mask_tokens", "num_mask_tokens"),
        "mask tokens repeated without a gather, and without waiting for the device",
        _predictor_embeddings,
        _predictor_embeddings_reason,
        around=0,
    ),
    Target(
        "transformers",
        "IJepaAttention",
        (("hidden_states", "attention_mask", "**kwargs"),),
        ("config", "q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling", "attention_dropout"),
        _ATTENTION,
        _ijepa_attention,
        _ijepa_attention_reason,
        around=1,
        plain_signatures=(("hidden_states", "head_mask"),),  # of transformers 4, around IJepaSelfAttention
    ),
    Target(
        "transformers",
        "IJepaSelfAttention",
        (("hidden_states", "head_mask"),),
        ("config", "query", "key", "value", "attention_head_size", "scaling", "dropout_prob"),
        _ATTENTION,
        _ijepa_self_attention,
        _ijepa_self_attention_reason,
        around=2,
    ),
    Target(
        "transformers",
        "IJepaPatchEmbeddings",
        (("pixel_values",), ("pixel_values", "interpolate_pos_encoding")),
        ("projection", "image_size"),
        _CONVOLUTION,
        _patches_2d,
        _patches_2d_reason,
        lambda self: refuse_conv(self.projection),
    ),
)
