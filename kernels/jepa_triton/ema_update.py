"""EMA target update: many tensors in one launch, found through a table of addresses on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import TRITON_DTYPES, AotCase

_BLOCK = 2048
_ROW = tl.constexpr(5)  # target, online, shadow, element count, place in the caller's list


@triton.jit
def _random16(first, seed, index, BLOCK: tl.constexpr):
    """16 random bits an element: element e takes lane e % 8 of Philox block e // 8. `first` is a multiple of 8."""
    block = first // 8 + tl.arange(0, BLOCK // 8)  # [BLOCK / 8]
    low = (block & 0xFFFFFFFF).to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(seed, low, high, zero + index.to(tl.uint32), zero)
    # Interleaved three times, the halves come out in the order of the elements: 0 low, 0 high, 1 low, ...
    low_halves = tl.interleave(tl.interleave(w0 & 0xFFFF, w2 & 0xFFFF), tl.interleave(w1 & 0xFFFF, w3 & 0xFFFF))
    high_halves = tl.interleave(tl.interleave(w0 >> 16, w2 >> 16), tl.interleave(w1 >> 16, w3 >> 16))
    return tl.interleave(low_halves, high_halves)  # [BLOCK]


@triton.jit
def _to_bf16_stochastic(value, random16):
    """Adds 16 random bits below the kept mantissa, then truncates; infinities and NaN stay."""
    bits = value.to(tl.uint32, bitcast=True)
    truncated = ((bits + random16) & 0xFFFF0000).to(tl.float32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, truncated, value).to(tl.bfloat16)


@triton.jit
def _update_block(
    target,
    online,
    shadow,
    first,
    numel,
    weight,
    seed,
    index,
    STOCHASTIC: tl.constexpr,
    SHADOW: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """target = lerp(target, online, weight) on BLOCK elements from `first`."""
    offsets = first + tl.arange(0, BLOCK)  # [BLOCK]
    inside = offsets < numel if MASKED else None
    old = tl.load(target + offsets, mask=inside, other=0.0 if MASKED else None).to(tl.float32)
    new = tl.load(online + offsets, mask=inside, other=0.0 if MASKED else None).to(tl.float32)
    # torch.lerp's two branches: exact at both ends.
    difference = new - old
    near_target = tl.fma(difference, tl.zeros_like(old) + weight, old)
    near_online = tl.fma(difference, tl.zeros_like(old) + (weight - 1.0), new)
    value = tl.where(weight < 0.5, near_target, near_online)
    if STOCHASTIC:
        stored = _to_bf16_stochastic(value, _random16(first, seed, index, BLOCK))
    else:
        stored = value.to(target.dtype.element_ty)
    tl.store(target + offsets, stored, mask=inside)
    if SHADOW:
        tl.store(shadow + offsets, value.to(shadow.dtype.element_ty), mask=inside)


@triton.jit
def ema_update_kernel(
    table,
    chunks,
    weight,
    seed,
    TARGET: tl.constexpr,
    ONLINE: tl.constexpr,
    SHADOW: tl.constexpr,  # None without shadows
    ALIGNED: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program updates CHUNK elements of one tensor."""
    program = tl.program_id(0).to(tl.int64)
    row = table + tl.load(chunks + 2 * program).to(tl.int64) * _ROW
    begin = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK
    target = tl.load(row).to(tl.pointer_type(TARGET))
    online = tl.load(row + 1).to(tl.pointer_type(ONLINE))
    HAS_SHADOW: tl.constexpr = SHADOW is not None
    shadow = tl.load(row + 2).to(tl.pointer_type(SHADOW if HAS_SHADOW else TARGET))
    if ALIGNED:  # 16-byte accesses; an address read from memory carries no alignment that the compiler could see
        target = tl.multiple_of(target, 16)
        online = tl.multiple_of(online, 16)
        shadow = tl.multiple_of(shadow, 16)
    numel = tl.load(row + 3)
    index = tl.load(row + 4)
    for start in range(0, CHUNK, BLOCK):
        first = begin + start
        # A whole block needs no mask, and a mask of unknown alignment would split its accesses into single elements.
        if first + BLOCK <= numel:
            _update_block(target, online, shadow, first, numel, weight, seed, index, STOCHASTIC, HAS_SHADOW, False, BLOCK)
        elif first < numel:
            _update_block(target, online, shadow, first, numel, weight, seed, index, STOCHASTIC, HAS_SHADOW, True, BLOCK)


def launch(
    table: torch.Tensor,
    chunks: torch.Tensor,
    weight: float,
    seed: int,
    *,
    target_dtype: torch.dtype,
    online_dtype: torch.dtype,
    shadow_dtype: torch.dtype | None,
    aligned: bool,
    stochastic: bool,
    chunk: int,
) -> None:
    """Updates all tensors of one plan (`jepa_kernels.ops.ema_update.DevicePlan`)."""
    ema_update_kernel[(chunks.shape[0],)](
        table,
        chunks,
        weight,
        seed,
        TARGET=TRITON_DTYPES[target_dtype],
        ONLINE=TRITON_DTYPES[online_dtype],
        SHADOW=None if shadow_dtype is None else TRITON_DTYPES[shadow_dtype],
        ALIGNED=aligned,
        STOCHASTIC=stochastic,
        CHUNK=chunk,
        BLOCK=_BLOCK,
        num_warps=4,
    )


def aot_cases(quick: bool = False) -> list[AotCase]:
    """Configurations of the compile gate: the pairs of dtypes that training uses, with and without shadows and stochastic rounding."""
    combinations = [
        (tl.float32, tl.float32, None, True, False),
        (tl.float32, tl.float32, tl.bfloat16, True, False),
        (tl.float32, tl.float32, None, False, False),
        (tl.bfloat16, tl.float32, None, True, True),
        (tl.bfloat16, tl.bfloat16, None, True, True),
        (tl.float16, tl.float16, tl.float16, True, False),
    ]
    return [
        AotCase(
            name=f"ema_update-{target}-{online}-{shadow}-{'aligned' if aligned else 'unaligned'}{'-stochastic' * stochastic}",
            kernel=ema_update_kernel,
            signature={"table": "*i64", "chunks": "*i32", "weight": "fp32", "seed": "i64"},
            constants={
                "TARGET": target,
                "ONLINE": online,
                "SHADOW": shadow,
                "ALIGNED": aligned,
                "STOCHASTIC": stochastic,
                "CHUNK": 16384,
                "BLOCK": _BLOCK,
            },
        )
        for target, online, shadow, aligned, stochastic in (combinations[1:4:2] if quick else combinations)
    ]
