"""Attention of JEPA models: dense, with 3-D RoPE inside, frame-causal, and ragged batches of unequal lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import work as formulas
from ..eager_vjepa2 import rotate_queries_or_keys
from ..providers import kernel_providers
from .base import DTYPES, Case, Provider, Setting, Work

RAGGED_LENGTHS = (70, 113, 138, 258)


@dataclass(frozen=True)
class Shape:
    """Heads and tokens of a real model. `grid` is (frames, rows, columns) with 3-D RoPE, or None without."""

    batch: int
    heads: int
    head_dim: int
    tokens: int
    grid: tuple[int, int, int] | None = None
    causal_frames: int = 0
    lengths: tuple[int, ...] = ()
    backward: bool = False


@dataclass(frozen=True)
class AttentionInputs:
    """Packed qkv, (B, N, 3, H, D), or (total, 3, H, D) for a ragged batch, and the gradient of the output."""

    qkv: Tensor
    upstream: Tensor
    shape: Shape
    positions: Tensor | None = None  # fp32 (N, 3): frame, row, column
    extra: dict[str, Any] = field(default_factory=dict)

    def split(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as (B, H, N, D) views, as the official models hand them to SDPA."""
        q, k, v = self.qkv.permute(2, 0, 3, 1, 4).unbind()
        return q, k, v


def _inputs(shape: Shape, dtype: torch.dtype, setting: Setting) -> AttentionInputs:
    generator, device = setting.generator(), setting.device
    lead = (sum(shape.lengths),) if shape.lengths else (shape.batch, shape.tokens)
    qkv = torch.randn(*lead, 3, shape.heads, shape.head_dim, generator=generator).to(device, dtype)
    upstream = torch.randn(*lead, shape.heads, shape.head_dim, generator=generator).to(device, dtype)
    if not shape.lengths:
        upstream = upstream.transpose(1, 2)
    positions = None
    if shape.grid is not None:
        axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape.grid), indexing="ij")
        positions = torch.stack(axes, -1).reshape(-1, 3).to(device)
    return AttentionInputs(qkv.requires_grad_(shape.backward), upstream, shape, positions)


def _pairs(shape: Shape) -> int:
    if shape.lengths:
        return formulas.ragged_pairs(shape.lengths)
    if shape.causal_frames:
        per_frame = shape.tokens // shape.causal_frames
        return shape.batch * formulas.frame_causal_pairs(shape.causal_frames, per_frame)
    return shape.batch * shape.tokens**2


def _work(inputs: AttentionInputs) -> Work:
    shape = inputs.shape
    tokens = sum(shape.lengths) if shape.lengths else shape.batch * shape.tokens
    return Work(
        formulas.attention_flops(_pairs(shape), shape.heads, shape.head_dim, backward=shape.backward),
        formulas.attention_bytes(
            tokens,
            shape.heads,
            shape.head_dim,
            value_bytes=inputs.qkv.element_size(),
            backward=shape.backward,
        ),
        len(shape.lengths) or shape.batch,
        tokens,
    )


def _arguments(inputs: AttentionInputs) -> dict[str, Any]:
    import jepa_kernels as jk

    shape = inputs.shape
    arguments: dict[str, Any] = {}
    if shape.lengths:
        ends = torch.tensor((0, *shape.lengths)).cumsum(0).to(inputs.qkv.device, torch.int32)
        arguments["mask"] = jk.Ragged(ends, max(shape.lengths))
    elif shape.causal_frames:
        arguments["mask"] = jk.FrameCausal(shape.tokens // shape.causal_frames)
    if inputs.positions is not None:
        arguments["rope"] = jk.Rope3D(inputs.positions)
    return arguments


def _with_arguments(inputs: AttentionInputs) -> AttentionInputs:
    return replace(inputs, extra=_arguments(inputs))


def _finish(inputs: AttentionInputs, out: Tensor) -> tuple[Tensor, ...]:
    if not inputs.shape.backward:
        return (out,)
    return (out.detach(), *torch.autograd.grad(out, inputs.qkv, inputs.upstream.to(out.dtype)))


def _kernel(inputs: AttentionInputs) -> tuple[Tensor, ...]:
    import jepa_kernels as jk

    return _finish(inputs, jk.masked_attention(inputs.qkv, **inputs.extra))


def _twin(inputs: AttentionInputs, *, double: bool = False) -> list[Tensor]:
    from ... import reference

    if double:
        qkv = inputs.qkv.detach().double().requires_grad_(inputs.shape.backward)
        inputs = replace(inputs, qkv=qkv)
    return list(_finish(inputs, reference.masked_attention(inputs.qkv, **_arguments(inputs))))


def _sdpa(inputs: AttentionInputs) -> tuple[Tensor, ...]:
    q, k, v = inputs.split()
    return _finish(inputs, functional.scaled_dot_product_attention(q, k, v, **inputs.extra))


def _rope_sdpa(inputs: AttentionInputs) -> tuple[Tensor, ...]:
    """The official form: angles rebuilt and both tensors rotated elementwise in every call."""
    q, k, v = inputs.split()
    assert inputs.positions is not None
    q, k = (rotate_queries_or_keys(x, inputs.positions).to(v.dtype) for x in (q, k))
    return _finish(inputs, functional.scaled_dot_product_attention(q, k, v))


def _bool_mask(inputs: AttentionInputs) -> AttentionInputs:
    """The official frame-causal form: a dense boolean mask, built ahead and outside the timing."""
    per_frame = inputs.shape.tokens // inputs.shape.causal_frames
    frame = torch.arange(inputs.shape.tokens, device=inputs.qkv.device) // per_frame
    return replace(inputs, extra={"attn_mask": frame[:, None] >= frame[None, :]})


def _padded(inputs: AttentionInputs) -> AttentionInputs:
    """Sequences padded to the longest, with a key mask; padding is outside the timing, in favour of the peer."""
    lengths, longest = inputs.shape.lengths, max(inputs.shape.lengths)
    parts = inputs.qkv.detach().split(list(lengths))
    padded = torch.stack([functional.pad(p, (0, 0) * 3 + (0, longest - p.shape[0])) for p in parts])
    upstream = torch.stack(
        [functional.pad(p, (0, 0) * 2 + (0, longest - p.shape[0])) for p in inputs.upstream.split(list(lengths))]
    ).transpose(1, 2)
    valid = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    mask = valid[:, None, None, :].to(padded.device)
    return replace(
        inputs,
        qkv=padded.requires_grad_(inputs.shape.backward),
        upstream=upstream,
        extra={"attn_mask": mask},
    )


def _unpad(state: AttentionInputs, result: tuple[Tensor, ...]) -> list[Tensor]:
    lengths = state.shape.lengths
    out = torch.cat([result[0][i, :, :n].transpose(0, 1) for i, n in enumerate(lengths)])
    return [out, *(torch.cat([g[i, :n] for i, n in enumerate(lengths)]) for g in result[1:])]


def _providers(shape: Shape, device: torch.device) -> list[Provider]:
    kernels = kernel_providers("masked_attention", device, _kernel, setup=_with_arguments)
    if shape.lengths:
        padded = Provider("torch-sdpa-padded", _sdpa, _padded, outputs=_unpad, about="padded, key mask")
        return [*kernels, padded]
    if shape.causal_frames:
        about = "dense boolean mask, the official form"
        return [*kernels, Provider("torch-sdpa-bool-mask", _sdpa, _bool_mask, about=about)]
    if shape.grid is not None:
        return [*kernels, Provider("torch-rope-sdpa", _rope_sdpa, about="elementwise RoPE, then SDPA")]
    return [*kernels, Provider("torch-sdpa", _sdpa)]


def make_case(name: str, shape: Shape, dtype: str, peer: str, tags: set[str]) -> Case:
    """One attention case; the name gains its direction."""
    direction = "fwd-bwd" if shape.backward else "fwd"
    make: Callable[[Setting], AttentionInputs] = partial(_inputs, shape, DTYPES[dtype])
    names = ("batch", "heads", "head_dim", "tokens", "causal_frames")
    listed: dict[str, int | float | str] = {k: getattr(shape, k) for k in names}
    listed |= {"grid": str(shape.grid), "lengths": str(shape.lengths), "direction": direction}
    return Case(
        operator="masked_attention",
        name=f"{name}-{direction}",
        dtype=dtype,
        shape=listed,
        make_inputs=make,
        providers=partial(_providers, shape),
        work=_work,
        reference=partial(_twin, double=True),
        low_precision=_twin,
        peer=peer,
        tags=frozenset(tags),
    )


def cases() -> list[Case]:
    """The attention cases: ViT-L heads (d = 64) and the V-JEPA 2 predictor (d = 32)."""
    dense = Shape(batch=1, heads=16, head_dim=64, tokens=512)
    rope = replace(dense, grid=(2, 16, 16))
    causal = replace(dense, tokens=516, causal_frames=2)
    ragged = replace(dense, lengths=RAGGED_LENGTHS, tokens=0, batch=len(RAGGED_LENGTHS))
    predictor = Shape(batch=2, heads=12, head_dim=32, tokens=1024, grid=(4, 16, 16))
    every, full = {"quick", "full"}, {"full"}
    found = []
    for dtype in ("bf16", "fp32"):
        found += [
            make_case("dense-d64-n512", dense, dtype, "torch-sdpa", every),
            make_case("vjepa2-vitl-rope-n512", rope, dtype, "torch-rope-sdpa", every),
            make_case("vjepa2-ac-causal-2f", causal, dtype, "torch-sdpa-bool-mask", every),
            make_case("vjepa2-contexts-ragged", ragged, dtype, "torch-sdpa-padded", every),
        ]
    long_rope = replace(rope, tokens=2048, grid=(8, 16, 16))
    return [
        *found,
        make_case("vjepa2-vitl-rope-n512", replace(rope, backward=True), "bf16", "torch-rope-sdpa", every),
        make_case("vjepa2-vitl-rope-n2048", long_rope, "bf16", "torch-rope-sdpa", full),
        make_case("vjepa2-vitl-rope-n2048", replace(long_rope, backward=True), "bf16", "torch-rope-sdpa", full),
        make_case("vjepa2-predictor-d32-n1024", predictor, "bf16", "torch-rope-sdpa", full),
        make_case("vjepa2-ac-causal-7f", replace(causal, tokens=1806, causal_frames=7), "bf16",
              "torch-sdpa-bool-mask", full),
    ]  # fmt: skip
