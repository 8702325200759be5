"""`masked_attention`: softmax attention with structured masks and V-JEPA 2's 3-D RoPE inside the kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..attention_masks import AttentionMask, FrameCausal, KeyPadding, Ragged
from ..ops.masked_attention import attend
from ..rope import Rope3D

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def masked_attention(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    mask: AttentionMask | None = None,
    rope: Rope3D | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of queries over the keys that a mask lets them see, with rotary embedding applied on the way in.

    Formula: `softmax(scale * R(q) R(k)^T) v`, the softmax over the visible keys alone; R is the map of `Rope3D`, or the identity.
    A query that sees no key gives zeros, and zero gradients.

    Shapes: `q` (B, H, Nq, D), `k` and `v` (B, H, Nk, D), with any strides: a permuted view of a projection's output needs no
    copy where the last stride is 1. Or `q` alone as packed `qkv` (B, N, 3, H, D), whose gradient is written as one packed tensor.
    With `Ragged`: `q`, `k`, `v` (total, H, D), or packed (total, 3, H, D). Returns (B, H, Nq, D), laid out so that
    `.transpose(1, 2).reshape(B, Nq, H * D)` is a view, or (total, H, D). D is even with RoPE; up to 256 in the kernels.

    Dtypes: float32, bfloat16, float16, float64 (reference only), one for q, k and v. Under autocast q, k and v are cast to its
    dtype, except from float64. Rotated q and k are rounded to their dtype; scores, softmax and all sums are in float32.

    Args:
        q, k, v: queries, keys, values; `k` and `v` are None for packed input.
        mask: None; a bool tensor that broadcasts to (B, H, Nq, Nk), True where a query sees a key; `FrameCausal`, `Ragged` or
            `KeyPadding`. What a key holds that no query of its batch element and head may see never matters, NaN included.
        rope: `Rope3D` with the position of every token, or None.
        scale: factor of the scores; None means D ** -0.5.

    Raises:
        ValueError: shapes, head counts, head dims, lengths or devices do not fit together; `tokens_per_frame` does not divide a
            length; `scale` is not finite; on a CPU, or with JEPA_KERNELS_CHECK=1, also `lengths` or `cu_seqlens` out of range.
        TypeError: a dtype, mask or rope of another kind, or only one of `k` and `v`.

    Cost, forward: 4 B H Nq Nk D FLOPs for the visible pairs, and 2 to 4 bytes for each element of q, k, v and the output; nothing
    of size Nq x Nk is stored (but by the reference backend). Backward: 2.5 times the FLOPs. RoPE tables add 16 N D bytes.

    Deterministic: yes, bit for bit, forward and backward, for one backend on one machine. Once differentiable.

    Source: FlashAttention (Dao et al., 2022); masks and RoPE of V-JEPA 2 (Assran et al., 2025).

    Example:
        >>> import torch, jepa_kernels as jk
        >>> qkv = torch.randn(2, 8, 3, 4, 32)  # (B, N, 3, H, D): 2 frames of 2 x 2 patches
        >>> rope = jk.Rope3D.from_ids(torch.arange(8), grid=(2, 2))
        >>> jk.masked_attention(qkv, mask=jk.FrameCausal(tokens_per_frame=4), rope=rope).shape
        torch.Size([2, 4, 8, 32])
    """
    packed, arguments = _normalise(q, k, v, mask, rope, scale)
    out = attend(packed, arguments)
    return out[0].transpose(0, 1) if isinstance(mask, Ragged) else out


def prepare(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    mask: AttentionMask | None = None,
    rope: Rope3D | None = None,
    scale: float | None = None,
) -> dict[str, Any]:
    """Checks the call and returns the operator's arguments; packed input as views."""
    return _normalise(q, k, v, mask, rope, scale)[1]


def _normalise(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    mask: AttentionMask | None,
    rope: Rope3D | None,
    scale: float | None,
) -> tuple[Tensor | None, dict[str, Any]]:
    """The packed tensor (B, N, 3, H, D), or None, and the operator's arguments."""
    ragged = isinstance(mask, Ragged)
    packed = None
    if k is None and v is None:
        packed = _checked_packed(q, ragged)
        q, k, v = (part.transpose(1, 2) for part in packed.unbind(2))
    elif k is None or v is None:
        raise TypeError("masked_attention: only one of k and v is given; pass both, or packed qkv alone")
    else:
        q, k, v = _checked_triple(q, k, v, ragged)
    if q.shape[-1] < 1:
        raise ValueError("masked_attention: the head dim is 0; it must be at least 1")
    arguments = {
        "q": q,
        "k": k,
        "v": v,
        "bool_mask": None,
        "key_lengths": None,
        "cu_seqlens": None,
        "max_seqlen": 0,
        "tokens_per_frame": 0,
        "query_frame_offset": 0,
        "q_cos": None,
        "q_sin": None,
        "k_cos": None,
        "k_sin": None,
        "scale": _checked_scale(scale, q.shape[-1]),
    }
    if mask is not None:
        arguments.update(_mask_arguments(mask, q, k))
    if rope is not None:
        _check_rope(rope, q, k)
        arguments.update(rope.tables(q.shape[-1], q.dtype)._asdict())
    return packed, arguments


def _checked_packed(qkv: Tensor, ragged: bool) -> Tensor:
    _check_tensor("q", qkv)
    form = "(total, 3, H, D)" if ragged else "(B, N, 3, H, D)"
    if qkv.dim() != (4 if ragged else 5) or qkv.shape[-3] != 3:
        raise ValueError(
            f"masked_attention: q has shape {tuple(qkv.shape)}; without k and v it must be packed qkv of shape {form}"
        )
    qkv = _autocast(qkv)
    return qkv[None] if ragged else qkv


def _checked_triple(q: Tensor, k: Tensor, v: Tensor, ragged: bool) -> tuple[Tensor, Tensor, Tensor]:
    form = "(total, H, D)" if ragged else "(B, H, N, D)"
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_tensor(name, x)
        if x.dim() != (3 if ragged else 4):
            raise ValueError(f"masked_attention: {name} has shape {tuple(x.shape)}; it must be {form}")
        if x.device != q.device:
            raise ValueError(f"masked_attention: {name} is on {x.device}, q on {q.device}; move them together")
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise TypeError(f"masked_attention: {name} has dtype {x.dtype}, q {q.dtype}; convert them to one")
    if ragged:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    for name, x in (("k", k), ("v", v)):
        for axis, what in ((0, "batch size"), (1, "head count"), (3, "head dim")):
            if x.shape[axis] != q.shape[axis]:
                raise ValueError(
                    f"masked_attention: the {what} of {name} is {x.shape[axis]}, that of q {q.shape[axis]}; they must be equal"
                )
    if k.shape[2] != v.shape[2]:
        raise ValueError(f"masked_attention: {k.shape[2]} keys but {v.shape[2]} values; give one value a key")
    if ragged and q.shape[2] != k.shape[2]:
        raise ValueError(
            f"masked_attention: {q.shape[2]} queries but {k.shape[2]} keys; with Ragged they are the same tokens"
        )
    return q, k, v


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"masked_attention: {name} is a {type(x).__name__}, not a tensor")
    if x.dtype not in _FLOATS:
        raise TypeError(
            f"masked_attention: {name} has dtype {x.dtype}; convert it to float32, bfloat16, float16 or float64"
        )


def _autocast(x: Tensor) -> Tensor:
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def _checked_scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return head_dim**-0.5
    if not isinstance(scale, (int, float)) or isinstance(scale, bool):
        raise TypeError(f"masked_attention: scale is a {type(scale).__name__}; give a number, or None for D ** -0.5")
    if not -math.inf < scale < math.inf:  # false for NaN, too
        raise ValueError(f"masked_attention: scale is {scale}; give a finite number")
    return float(scale)


def _mask_arguments(mask: AttentionMask, q: Tensor, k: Tensor) -> dict[str, Any]:
    if isinstance(mask, FrameCausal):
        mask.check(q.shape[2], k.shape[2])
        return mask.op_arguments()
    if isinstance(mask, KeyPadding):
        if mask.lengths.shape[0] != q.shape[0]:
            raise ValueError(
                f"masked_attention: KeyPadding has {mask.lengths.shape[0]} lengths for batch size {q.shape[0]}; give one each"
            )
        _check_device("KeyPadding.lengths", mask.lengths, q)
        return mask.op_arguments()
    if isinstance(mask, Ragged):
        _check_device("Ragged.cu_seqlens", mask.cu_seqlens, q)
        return mask.op_arguments()
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"masked_attention: mask is a {type(mask).__name__}; give None, a bool tensor, FrameCausal, Ragged or KeyPadding"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"masked_attention: mask has dtype {mask.dtype}; give bool, True where a query sees a key")
    _check_device("mask", mask, q)
    full = (*q.shape[:3], k.shape[2])
    broadcasts = mask.dim() <= 4 and all(
        size == 1 or size == whole for size, whole in zip(reversed(mask.shape), reversed(full), strict=False)
    )
    if not broadcasts:
        raise ValueError(
            f"masked_attention: mask of shape {tuple(mask.shape)} does not broadcast to (B, H, Nq, Nk) = {full}"
        )
    return {"bool_mask": mask.expand(full)}


def _check_rope(rope: Rope3D, q: Tensor, k: Tensor) -> None:
    if not isinstance(rope, Rope3D):
        raise TypeError(f"masked_attention: rope is a {type(rope).__name__}; give a Rope3D, or None")
    if q.shape[-1] % 2 != 0:
        raise ValueError(f"masked_attention: the head dim {q.shape[-1]} is odd; RoPE turns pairs of channels")
    sides = [("positions", rope.positions, k.shape[2], "keys")]
    if rope.query_positions is None:
        if q.shape[2] != k.shape[2]:
            raise ValueError(
                f"masked_attention: {q.shape[2]} queries and {k.shape[2]} keys, but one set of positions; "
                "give Rope3D query_positions, too"
            )
    else:
        sides.append(("query_positions", rope.query_positions, q.shape[2], "queries"))
    for name, positions, tokens, what in sides:
        _check_device(f"Rope3D.{name}", positions, q)
        if positions.shape[-2] != tokens:
            raise ValueError(f"masked_attention: Rope3D.{name} has {positions.shape[-2]} rows for {tokens} {what}")
        if positions.dim() == 3 and positions.shape[0] not in (1, q.shape[0]):
            raise ValueError(
                f"masked_attention: Rope3D.{name} has batch size {positions.shape[0]}, q {q.shape[0]}; give (N, 3) or (B, N, 3)"
            )


def _check_device(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.device != q.device:
        raise ValueError(f"masked_attention: {name} is on {tensor.device}, q on {q.device}; move them together")
