"""EMA target update: many tensors in one launch, found through a table of addresses on the device."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ._common import TRITON_DTYPES, AotCase, lerp

_BLOCK = 2048
_WARPS = 8  # eight elements a thread: with sixteen, sm_100 spills for 16-bit types
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
    value = lerp(old, new, weight)
    if STOCHASTIC:
        stored = _to_bf16_stochastic(value, _random16(first, seed, index, BLOCK))
    else:
        stored = value.to(target.dtype.element_ty)
    tl.store(target + offsets, stored, mask=inside)
    if SHADOW:
        tl.store(shadow + offsets, value.to(shadow.dtype.element_ty), mask=inside)


# Another seed at every step: one that is 1, or a multiple of 16, or beyond 32 bits must not mean another kernel, which a CUDA
# graph that is being captured could not load.
@triton.jit(do_not_specialize=["seed"])
def ema_update_kernel(
    table,
    chunks,
    weight,
    momentum,  # pointer to a momentum on the device, which then takes the place of weight; or None
    seed: tl.int64,
    seed_pointer,  # pointer to a seed on the device, which then takes the place of seed; or None
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
    if momentum is not None:
        weight = (1.0 - tl.load(momentum).to(tl.float64)).to(tl.float32)
    if seed_pointer is not None:
        seed = tl.load(seed_pointer)
    for start in range(0, CHUNK, BLOCK):
        first = begin + start
        # A whole block needs no mask, and a mask of unknown alignment would split its accesses into single elements.
        if first + BLOCK <= numel:
            _update_block(
                target, online, shadow, first, numel, weight, seed, index, STOCHASTIC, HAS_SHADOW, False, BLOCK
            )
        elif first < numel:
            _update_block(
                target, online, shadow, first, numel, weight, seed, index, STOCHASTIC, HAS_SHADOW, True, BLOCK
            )


def launch(
    table: torch.Tensor,
    chunks: torch.Tensor,
    momentum: float | torch.Tensor,
    seed: int | torch.Tensor,
    *,
    target_dtype: torch.dtype,
    online_dtype: torch.dtype,
    shadow_dtype: torch.dtype | None,
    aligned: bool,
    stochastic: bool,
    chunk: int,
) -> None:
    """Updates all tensors of one plan (`jepa_kernels.ops.ema_update.DevicePlan`); momentum and seed may lie on the
    device."""
    ema_update_kernel[(chunks.shape[0],)](
        table,
        chunks,
        0.0 if isinstance(momentum, torch.Tensor) else 1.0 - momentum,
        momentum if isinstance(momentum, torch.Tensor) else None,
        0 if isinstance(seed, torch.Tensor) else seed,
        seed if isinstance(seed, torch.Tensor) else None,
        TARGET=TRITON_DTYPES[target_dtype],
        ONLINE=TRITON_DTYPES[online_dtype],
        SHADOW=None if shadow_dtype is None else TRITON_DTYPES[shadow_dtype],
        ALIGNED=aligned,
        STOCHASTIC=stochastic,
        CHUNK=chunk,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


def aot_cases(quick: bool = False) -> list[AotCase]:
    """Configurations of the compile gate: the pairs of dtypes that training uses, with and without shadows and
    stochastic rounding."""
    combinations = [
        (tl.float32, tl.float32, None, True, False, False),
        (tl.float32, tl.float32, tl.bfloat16, True, False, False),
        (tl.float32, tl.float32, None, False, False, False),
        (tl.bfloat16, tl.float32, None, True, True, False),
        (tl.bfloat16, tl.bfloat16, None, True, True, True),
        (tl.float16, tl.float16, tl.float16, True, False, False),
    ]
    return [_aot_case(*combination) for combination in (combinations[1:5:3] if quick else combinations)]


def _aot_case(target: Any, online: Any, shadow: Any, aligned: bool, stochastic: bool, on_device: bool) -> AotCase:
    marks = f"{'aligned' if aligned else 'unaligned'}{'-stochastic' * stochastic}{'-device_scalars' * on_device}"
    pointers: dict[str, str] = {"momentum": "*fp64", "seed_pointer": "*i64"} if on_device else {}
    absent: dict[str, Any] = {} if on_device else {"momentum": None, "seed_pointer": None}
    return AotCase(
        name=f"ema_update-{target}-{online}-{shadow}-{marks}",
        kernel=ema_update_kernel,
        signature={"table": "*i64", "chunks": "*i32", "weight": "fp32", "seed": "i64", **pointers},
        constants={
            **absent,
            "TARGET": target,
            "ONLINE": online,
            "SHADOW": shadow,
            "ALIGNED": aligned,
            "STOCHASTIC": stochastic,
            "CHUNK": 16384,
            "BLOCK": _BLOCK,
        },
        num_warps=_WARPS,
    )
