"""Attention with 3-D RoPE and masks on Triton: plain launchers over the kernels of masked_attention_{forward,backward}.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from .launch import Launch, multiprocessors, stride_arguments, stride_unit
from .masked_attention_backward import key_gradient_kernel, query_gradient_kernel
from .masked_attention_forward import forward_kernel
from .masked_attention_tiles import Tile
from .ragged_items import ragged_slots
from .rope import rotation
from .segments import head_dim_segments
from .tuned_tiles import choose

LOG2_E = math.log2(math.e)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Extras:
    """Mask, rotation and scale of one call, as keyword arguments of `forward` and `backward`. At most one mask is given.

    bool_mask: bool (B, H, Nq, Nk) of any strides, True = attend. key_lengths: int32 (B,), keys from there on are not visible.
    cu_seqlens: int32 (S + 1,), bounds of S sequences on the token axis of B = 1; max_seqlen: the longest,
    or about that, since it only chooses a tile size.
    tokens_per_frame: 0, or query i (frame query_frame_offset + i // tokens_per_frame) sees the keys of frames up to its own.
    q_cos ... k_sin: float32 (1 or B, N, D), all or none.
    """

    scale: float
    bool_mask: Tensor | None = None
    key_lengths: Tensor | None = None
    cu_seqlens: Tensor | None = None
    max_seqlen: int = 0
    tokens_per_frame: int = 0
    query_frame_offset: int = 0
    q_cos: Tensor | None = None
    q_sin: Tensor | None = None
    k_cos: Tensor | None = None
    k_sin: Tensor | None = None

    @property
    def sequences(self) -> int:
        return 0 if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    def tiles(self, length: int, block: int) -> int:
        """Tiles of `block` rows a head and batch item: of its length, or at most those of all sequences of a ragged batch."""
        return triton.cdiv(length, block) if self.cu_seqlens is None else ragged_slots(length, self.sequences, block)

    def arguments(self, q: Tensor, k: Tensor, unit: int) -> dict[str, Any]:
        """What the three attention kernels take alike."""
        batch, heads, query_len, head_dim = q.shape
        mask = None if self.bool_mask is None else _unit_key_stride(self.bool_mask).view(torch.uint8)
        mask_unit = stride_unit(mask)
        frames = 1 + max(query_len, k.shape[2]) // max(self.tokens_per_frame, 1)
        return {
            "mask_ptr": mask, "key_lengths_ptr": self.key_lengths, "cu_seqlens_ptr": self.cu_seqlens,
            **stride_arguments("mask", mask, "bhq", mask_unit), "MASK_STRIDE_UNIT": mask_unit,
            "num_heads": heads, "query_len": query_len, "key_len": k.shape[2], "num_sequences": self.sequences,
            "tokens_per_frame": self.tokens_per_frame,
            # Frames beyond either end change nothing, and this keeps the product with tokens_per_frame in int32.
            "query_frame_offset": max(-frames, min(self.query_frame_offset, frames)),
            "HEAD_DIM": head_dim, "SEGMENTS": head_dim_segments(head_dim, narrow=q.dtype == torch.float32), "STRIDE_UNIT": unit,
            "FRAME_CAUSAL": self.tokens_per_frame > 0, "CHANNEL_LOOP": q.dtype == torch.float32,
        }  # fmt: skip


def forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, **extras: Any) -> None:
    """Attention with rotation and mask, written into out and lse.

    out = softmax(scale rot(q) rot(k)^T) v;  lse = ln sum exp(scale rot(q) rot(k)^T); both over the visible keys.

    Shapes: q, out (B, H, Nq, D); k, v (B, H, Nk, D); any strides, the last 1; lse (B, H, Nq) contiguous. D even, <= 256.
    Keywords: those of `Extras`. A row without a visible key gives zeros and lse = -inf. A key that no row of a query tile
    sees has no influence on the tile, whatever it holds.
    Dtypes: float32 (products in float32, never TF32), bfloat16, float16; all sums and the softmax in float32, rotated values
    and weights rounded to the input dtype before their products; lse float32.
    Raises: ValueError naming a tensor whose layout or dtype the kernels cannot read.
    Moves q, k, v, out and lse once from DRAM (k and v again from L2 for each query tile), with RoPE also k in and out of a
    workspace; 4 D flops for each head and visible pair, rounded up to tiles. Bitwise repeatable.
    """
    for launch in forward_launches(q, k, v, out, lse, Extras(**extras)):
        launch.run()


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    **extras: Any,
) -> None:
    """Gradients of `forward` for the same extras, written into every element of dq, dk and dv.

    P = exp(scale s - lse), dS = P (dout v^T - rowsum(dout out)): dq = rot^T(scale dS rot(k)), dk = rot^T(scale dS^T rot(q)),
    dv = P^T dout. dq, dk and dv may be strided views, such as those of one packed gradient; dout may have any strides.
    Sums in float32. Raises as `forward`. 10 D flops for each head and visible pair that the mathematics needs, 14 D executed:
    the scores and dout v^T are computed in both kernels, so that each gradient has one writer and no atomics. Bitwise repeatable.
    """
    if dout.stride(-1) != 1:  # such as the gradient of a sum, a broadcast scalar
        dout = dout.contiguous()
    for launch in backward_launches(dout, q, k, v, out, lse, dq, dk, dv, Extras(**extras)):
        launch.run()


def forward_launches(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, extras: Extras) -> list[Launch]:
    """The kernel calls of `forward`; tensors may be on the meta device."""
    _check(lse, q=q, k=k, v=v, out=out)
    batch, heads, query_len, _ = q.shape
    launches = []
    q_cos, q_sin = extras.q_cos, extras.q_sin
    if q_cos is not None and q_sin is not None and extras.k_cos is not None and extras.k_sin is not None:
        k, rotate_k = rotation(k, extras.k_cos, extras.k_sin)
        launches.append(rotate_k)
        if q.dtype == torch.float32:  # CHANNEL_LOOP reads q more than once
            q, rotate_q = rotation(q, q_cos, q_sin)
            launches.append(rotate_q)
            q_cos = q_sin = None
    longest = query_len if extras.cu_seqlens is None else extras.max_seqlen
    tile = choose("forward", q, longest, extras.bool_mask is not None)
    unit = stride_unit(q, k, v, out, q_cos, q_sin)
    tiles = extras.tiles(query_len, tile.block_m)
    arguments = {
        "q_ptr": q, "k_ptr": k, "v_ptr": v, "out_ptr": out, "lse_ptr": lse, **extras.arguments(q, k, unit),
        **_strides(unit, q=q, k=k, v=v, out=out), **_table_arguments(q_cos, q_sin, unit),
        "num_tiles": tiles, "scale_log2": abs(extras.scale) * LOG2_E, "NEGATIVE_SCALE": extras.scale < 0,
    }  # fmt: skip
    launches.append(_launch(forward_kernel, tiles * heads * batch, tile, arguments))
    return launches


def backward_launches(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    extras: Extras,
) -> list[Launch]:  # fmt: skip
    """The kernel calls of `backward`; tensors may be on the meta device."""
    _check(lse, dout=dout, q=q, k=k, v=v, out=out, dq=dq, dk=dk, dv=dv)
    batch, heads, query_len, _ = q.shape
    launches = []
    if extras.q_cos is not None and extras.q_sin is not None and extras.k_cos is not None and extras.k_sin is not None:
        q, rotate_q = rotation(q, extras.q_cos, extras.q_sin)
        k, rotate_k = rotation(k, extras.k_cos, extras.k_sin)
        launches += [rotate_q, rotate_k]
    delta = torch.empty_like(lse)
    tables = (extras.q_cos, extras.q_sin, extras.k_cos, extras.k_sin)
    unit = stride_unit(q, k, v, dout, out, dq, dk, dv, *tables)
    common = {
        "q_ptr": q, "k_ptr": k, "v_ptr": v, "dout_ptr": dout, "lse_ptr": lse, "delta_ptr": delta,
        **extras.arguments(q, k, unit), **_strides(unit, q=q, k=k, v=v, dout=dout),
        "scale": float(extras.scale), "scale_log2": extras.scale * LOG2_E,
    }  # fmt: skip

    longest = query_len if extras.cu_seqlens is None else extras.max_seqlen
    tile = choose("query_gradient", q, longest, extras.bool_mask is not None)
    tiles = extras.tiles(query_len, tile.block_m)
    arguments = {
        **common, "out_ptr": out, "dq_ptr": dq, **_strides(unit, out=out, dq=dq),
        **_table_arguments(extras.q_cos, extras.q_sin, unit), "num_tiles": tiles,
    }  # fmt: skip
    launches.append(_launch(query_gradient_kernel, tiles * heads * batch, tile, arguments))

    longest = k.shape[2] if extras.cu_seqlens is None else extras.max_seqlen
    tile = choose("key_gradient", q, longest, extras.bool_mask is not None)
    tiles = extras.tiles(k.shape[2], tile.block_n)
    arguments = {
        **common, "dk_ptr": dk, "dv_ptr": dv, **_strides(unit, dk=dk, dv=dv),
        **_table_arguments(extras.k_cos, extras.k_sin, unit), "num_tiles": tiles,
    }  # fmt: skip
    launches.append(_launch(key_gradient_kernel, tiles * heads * batch, tile, arguments))
    return launches


def _launch(kernel: Any, items: int, tile: Tile, arguments: dict[str, Any]) -> Launch:
    """One program an item; for ragged batches, where the table of tiles says so, as many as the GPU holds, which share them."""
    persistent = tile.resident > 0 and arguments["cu_seqlens_ptr"] is not None
    programs = min(items, tile.resident * multiprocessors(arguments["q_ptr"].device)) if persistent else items
    return Launch(kernel, programs, {**arguments, **tile.constants(), "PERSISTENT": persistent}, tile.options())


def _check(lse: Tensor, **tensors: Tensor) -> None:
    """The kernels trust these; a breach would read or write the wrong elements."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or tensor.dtype != tensors["q"].dtype:
            raise ValueError(
                f"{name} has dtype {tensor.dtype}: all of them must be float32, bfloat16 or float16, as q is"
            )
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} has strides {tensor.stride()}: make the last one 1, for example by .contiguous()"
            )
    if lse.dtype != torch.float32 or not lse.is_contiguous():
        raise ValueError(f"lse must be contiguous float32, got {lse.dtype} with strides {lse.stride()}")


def _unit_key_stride(mask: Tensor) -> Tensor:
    """The mask with a last stride of 1, so that a tile needs one address a row. Only axes that are not broadcast are copied."""
    if mask.stride(-1) == 1:
        return mask
    distinct = mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in (*mask.stride()[:-1], 1))]
    return distinct.contiguous().expand(mask.shape)


def _strides(unit: int, **tensors: Tensor) -> dict[str, int]:
    return {
        key: value
        for name, tensor in tensors.items()
        for key, value in stride_arguments(name, tensor, "bhn", unit).items()
    }


def _table_arguments(cos: Tensor | None, sin: Tensor | None, unit: int) -> dict[str, Any]:
    strides = {**stride_arguments("cos", cos, "bn", unit), **stride_arguments("sin", sin, "bn", unit)}
    return {"cos_ptr": cos, "sin_ptr": sin, **strides}
