"""Attention in float64 for the check of large cases: a few heads at a time, so that no score matrix outgrows the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional.masked_attention import prepare
from ..reference.masked_attention import backward, forward

MAX_SCORES = 1 << 27  # pairs of a part: 1 GiB a float64 matrix, of which a handful lives at a time
_TABLES = ("q_cos", "q_sin", "k_cos", "k_sin")


def exact(inputs: Sequence[Tensor], upstream: Tensor | None, **arguments: Any) -> list[Tensor]:
    """The output of `jk.masked_attention(*inputs, **arguments)` by its definition in float64, and for packed inputs with an
    `upstream` gradient, the gradient of qkv."""
    ragged = inputs[0].dim() == 4 and len(inputs) == 1
    call = prepare(*(x.detach().double() for x in inputs), **arguments)
    tensors = [call.pop(name) for name in "qkv"]
    dout = None if upstream is None else _heads_first(upstream.double(), ragged)
    query = tensors[0]
    out, gradients = torch.empty_like(query), [torch.empty_like(x) for x in tensors]
    lse = query.new_empty(query.shape[:3])
    for rows, heads in _parts(query, tensors[1].shape[2], call["max_seqlen"]):
        extras = _of_rows(call, rows)
        part = [x[rows, heads] for x in tensors]
        out[rows, heads], lse[rows, heads] = forward(*part, **extras)
        if dout is not None:
            q, k, v = part
            found = backward(dout[rows, heads], q, k, v, out[rows, heads], lse[rows, heads], **extras)
            for gradient, values in zip(gradients, found, strict=True):
                gradient[rows, heads] = values
    results = [out[0].transpose(0, 1) if ragged else out]
    if dout is not None:
        packed = torch.stack([gradient.transpose(1, 2) for gradient in gradients], dim=2)
        results.append(packed[0] if ragged else packed)
    return results


def _heads_first(x: Tensor, ragged: bool) -> Tensor:
    return x.transpose(0, 1)[None] if ragged else x


def _parts(query: Tensor, keys: int, longest: int) -> Iterator[tuple[slice, slice]]:
    """Slices of batch and heads that together cover all, each with as many pairs as `MAX_SCORES` allows, or one head."""
    batch, heads, queries, _ = query.shape
    at_once = max(MAX_SCORES // max((longest or queries) * (longest or keys), 1), 1)
    batch_step, head_step = max(at_once // heads, 1), min(at_once, heads)
    for row in range(0, batch, batch_step):
        for head in range(0, heads, head_step):
            yield slice(row, row + batch_step), slice(head, head + head_step)


def _of_rows(call: dict[str, Any], rows: slice) -> dict[str, Any]:
    """The arguments as these elements of the batch see them."""
    cut = dict(call)
    if cut["key_lengths"] is not None:
        cut["key_lengths"] = cut["key_lengths"][rows]
    for name in _TABLES:
        if cut[name] is not None and cut[name].shape[0] > 1:
            cut[name] = cut[name][rows]
    return cut
