"""Masked attention in plain PyTorch: the definition of what is right.

`masked_attention` is the twin of the public function and differentiable by autograd. `forward` and `backward` are
the same mathematics on the operator's arguments, the gradient written out; they serve as the backend "reference".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..attention_masks import AttentionMask, Ragged, frame_causal_mask, key_padding_mask
from ..rope import Rope3D


def masked_attention(
    q: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    *,
    mask: AttentionMask | None = None,
    rope: Rope3D | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale * rope(q) @ rope(k)^T, over the visible keys) @ v: see `jepa_kernels.masked_attention`.

    The scores of all pairs are held in memory. Low-precision inputs: rotated in float32 and rounded to their dtype,
    then everything in float32, rounded once at the end. float64 inputs: all in float64.
    """
    ragged = isinstance(mask, Ragged)
    if k is None or v is None:
        q, k, v = q.unbind(-3)  # (B, N, 3, H, D) or (total, 3, H, D)
        if not ragged:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if ragged:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    extras: dict[str, Any] = {}
    if isinstance(mask, torch.Tensor):
        extras["bool_mask"] = mask
    elif mask is not None:
        extras.update(mask.op_arguments())
    if rope is not None:
        extras.update(rope.tables(q.shape[-1], q.dtype)._asdict())
    out, _ = forward(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale, **extras)
    return out[0].transpose(0, 1) if ragged else out


def rotate(x: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None) -> torch.Tensor:
    """y[c] = x[c] cos[c] + x[c ^ 1] sin[c] for x (B, H, N, D) and tables (P, N, D), rounded to x's dtype."""
    if cos is None or sin is None:
        return x
    wide = x.to(cos.dtype)
    return (wide * cos[:, None] + _swap_pairs(wide) * sin[:, None]).to(x.dtype)


def rotate_transposed(dy: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None) -> torch.Tensor:
    """dx[c] = dy[c] cos[c] + dy[c ^ 1] sin[c ^ 1]: the gradient of `rotate`."""
    if cos is None or sin is None:
        return dy
    return dy * cos[:, None] + _swap_pairs(dy * sin[:, None])


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int = 0,
    **extras: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, H, Nq, D) and natural log-sum-exp (B, H, Nq) of the operator's arguments."""
    if cu_seqlens is None:
        return _forward_dense(q, k, v, **extras)
    parts = [_forward_dense(*_tokens((q, k, v), s), **_tables_of(extras, s)) for s in _sequences(cu_seqlens)]
    if not parts:
        return _forward_dense(q, k, v, **extras)
    return torch.cat([out for out, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)


def backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int = 0,
    **extras: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, from the output and log-sum-exp that `forward` returned."""
    if cu_seqlens is None:
        return _backward_dense(dout, q, k, v, out, lse, **extras)
    parts = [
        _backward_dense(*_tokens((dout, q, k, v, out, lse), s), **_tables_of(extras, s))
        for s in _sequences(cu_seqlens)
    ]
    if not parts:
        return _backward_dense(dout, q, k, v, out, lse, **extras)
    dq, dk, dv = (torch.cat(grads, dim=2) for grads in zip(*parts, strict=True))
    return dq, dk, dv


def _forward_dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    q_cos: torch.Tensor | None = None,
    q_sin: torch.Tensor | None = None,
    k_cos: torch.Tensor | None = None,
    k_sin: torch.Tensor | None = None,
    **mask: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    visible = _visible(q, k, **mask)
    q, k, v = _without_unused(q, k, v, visible)
    scores = _scores(rotate(q, q_cos, q_sin), rotate(k, k_cos, k_sin), visible, scale)
    lse = scores.logsumexp(dim=-1)
    # A row without keys is all -inf. Zeros in its place keep softmax and its gradient finite; then the row is erased.
    empty = lse.isneginf()[..., None]
    weights = scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)
    return (weights @ v.to(weights.dtype)).to(v.dtype), lse


def _backward_dense(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    scale: float,
    q_cos: torch.Tensor | None = None,
    q_sin: torch.Tensor | None = None,
    k_cos: torch.Tensor | None = None,
    k_sin: torch.Tensor | None = None,
    **mask: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dV = P^T dO;  dS = P * (dO V^T - rowsum(dO * O));  dQ = scale R_q^T(dS K);  dK = scale R_k^T(dS^T Q)."""
    visible = _visible(q, k, **mask)
    q, k, v = _without_unused(q, k, v, visible)
    rotated_q, rotated_k = rotate(q, q_cos, q_sin), rotate(k, k_cos, k_sin)
    empty = lse.isneginf()[..., None]
    scores = _scores(rotated_q, rotated_k, visible, scale)
    weights = (scores - lse[..., None]).exp().masked_fill(empty, 0.0)  # [B, H, Nq, Nk]
    wide = weights.dtype
    dout = dout.to(wide).masked_fill(empty, 0.0)
    row_sums = (dout * out.to(wide)).sum(dim=-1, keepdim=True)
    dscores = weights * (dout @ v.to(wide).transpose(-2, -1) - row_sums)
    dq = rotate_transposed(scale * (dscores @ rotated_k.to(wide)), q_cos, q_sin)
    dk = rotate_transposed(scale * (dscores.transpose(-2, -1) @ rotated_q.to(wide)), k_cos, k_sin)
    dv = weights.transpose(-2, -1) @ dout
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _visible(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    bool_mask: torch.Tensor | None = None,
    key_lengths: torch.Tensor | None = None,
    tokens_per_frame: int = 0,
    query_frame_offset: int = 0,
) -> torch.Tensor | None:
    """What each query sees, broadcastable to (B, H, Nq, Nk); None where it sees every key."""
    if bool_mask is not None:
        return bool_mask.expand(*q.shape[:3], k.shape[2])
    if key_lengths is not None:
        return key_padding_mask(key_lengths, k.shape[2])
    if tokens_per_frame != 0:
        return frame_causal_mask(tokens_per_frame, query_frame_offset, q.shape[2], k.shape[2], q.device)[None, None]
    return None


def _without_unused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zeros for queries that see no key and keys that no query sees: what they hold, NaN included, has no influence."""
    if visible is None:
        return q, k, v
    unseen = ~visible.any(dim=-2)[..., None]
    blind = ~visible.any(dim=-1)[..., None]
    return q.masked_fill(blind, 0.0), k.masked_fill(unseen, 0.0), v.masked_fill(unseen, 0.0)


def _scores(q: torch.Tensor, k: torch.Tensor, visible: torch.Tensor | None, scale: float) -> torch.Tensor:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = scale * (q.to(wide) @ k.to(wide).transpose(-2, -1))
    return scores if visible is None else scores.masked_fill(~visible, float("-inf"))


def _swap_pairs(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def _sequences(cu_seqlens: torch.Tensor) -> Iterator[slice]:
    bounds = cu_seqlens.tolist()
    return (slice(start, stop) for start, stop in zip(bounds[:-1], bounds[1:], strict=True))


def _tokens(tensors: tuple[torch.Tensor, ...], sequence: slice) -> Iterator[torch.Tensor]:
    return (x[:, :, sequence] for x in tensors)


def _tables_of(extras: dict[str, Any], sequence: slice) -> dict[str, Any]:
    def cut(value: Any) -> Any:
        return value[:, sequence] if isinstance(value, torch.Tensor) else value

    return {name: cut(value) for name, value in extras.items()}
