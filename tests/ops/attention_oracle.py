"""One problem of masked attention, its answer in float64, and PyTorch's own answer in the type of the inputs."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.nn.functional import scaled_dot_product_attention

NAMES = ("out", "dq", "dk", "dv")


@dataclasses.dataclass
class Problem:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    scale: float
    bool_mask: torch.Tensor | None = None
    key_lengths: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    max_seqlen: int = 0
    tokens_per_frame: int = 0
    query_frame_offset: int = 0
    tables: tuple[torch.Tensor, ...] | None = None  # q_cos, q_sin, k_cos, k_sin

    def visible(self) -> torch.Tensor:
        """(B, H, Nq, Nk), True where a query attends to a key."""
        batch, heads, queries, _ = self.q.shape
        keys = self.k.shape[2]
        row, column = torch.arange(queries)[:, None], torch.arange(keys)
        seen = torch.ones(batch, 1, queries, keys, dtype=torch.bool)
        if self.bool_mask is not None:
            seen = self.bool_mask
        elif self.key_lengths is not None:
            seen = seen & (column < self.key_lengths[:, None, None, None])
        elif self.cu_seqlens is not None:
            sequence = torch.bucketize(torch.arange(queries), self.cu_seqlens[1:].long(), right=True)
            seen = seen & (sequence[:, None] == sequence)
        elif self.tokens_per_frame:
            seen = seen & (column // self.tokens_per_frame <= self.query_frame_offset + row // self.tokens_per_frame)
        return seen.expand(batch, heads, queries, keys)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x * cos[:, None] + partner * sin[:, None]


def exact(problem: Problem) -> dict[str, torch.Tensor]:
    """out, lse and gradients in float64; the rotated q and k are rounded to the inputs' type, as every backend does."""
    q, k, v = (x.detach().double().requires_grad_() for x in (problem.q, problem.k, problem.v))
    rotated_q, rotated_k = q, k
    if problem.tables is not None:
        q_cos, q_sin, k_cos, k_sin = problem.tables
        rotated_q, rotated_k = _round_forward(q, q_cos, q_sin, problem.q), _round_forward(k, k_cos, k_sin, problem.k)
    visible = problem.visible()
    empty = ~visible.any(-1, keepdim=True)
    scores = (problem.scale * rotated_q @ rotated_k.transpose(-1, -2)).masked_fill(~visible, -math.inf)
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    out = weights @ v
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), problem.dout.double())
    return {"out": out.detach(), "lse": scores.detach().logsumexp(-1), "dq": dq, "dk": dk, "dv": dv}


def _round_forward(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    rotated = rotate(x, cos.double(), sin.double())
    rounded = rotate(original.float(), cos, sin).to(original.dtype).double()
    return rotated + (rounded - rotated).detach()


def in_pytorch(problem: Problem) -> dict[str, torch.Tensor]:
    """The same through scaled_dot_product_attention in the inputs' type."""
    q, k, v = (x.detach().contiguous().clone().requires_grad_() for x in (problem.q, problem.k, problem.v))
    rotated_q, rotated_k = q, k
    if problem.tables is not None:
        q_cos, q_sin, k_cos, k_sin = problem.tables
        rotated_q = rotate(q.float(), q_cos, q_sin).to(q.dtype)
        rotated_k = rotate(k.float(), k_cos, k_sin).to(k.dtype)
    visible = problem.visible()
    mask = None if visible.all() else visible
    out = scaled_dot_product_attention(rotated_q, rotated_k, v, attn_mask=mask, scale=problem.scale)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), problem.dout)
    return {"out": out.detach(), "dq": dq, "dk": dk, "dv": dv}


def errors(result: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """(largest, root mean square)"""
    difference = result.double() - expected
    return difference.abs().max().item(), difference.square().mean().sqrt().item()
