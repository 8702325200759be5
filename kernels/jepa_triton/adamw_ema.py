"""AdamW with EMA: a norm pass over the gradients, a small one for what all tensors share, one pass over every
parameter."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ._common import TRITON_DTYPES, AotCase, lerp

_BLOCK = 1024
_PREPARE_BLOCK = 256
# param, exp_avg, exp_avg_sq, step, target, param shadow, target shadow, element count, group
_ROW = tl.constexpr(9)
_HYPER = tl.constexpr(5)  # lr, beta1, beta2, eps, weight decay
_SHARED = tl.constexpr(3)  # gradient factor, 1 - momentum, whether the step is skipped
_CLIP_EPS = tl.constexpr(1e-6)


@triton.jit
def sum_of_squares_kernel(
    table, grads, chunks, partials, GRAD: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    """One program sums the squares of CHUNK elements of one gradient; float64 across blocks."""
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(chunks + 2 * program).to(tl.int64)
    begin = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK
    grad = tl.load(grads + row).to(tl.pointer_type(GRAD))
    if ALIGNED:
        grad = tl.multiple_of(grad, 16)
    numel = tl.load(table + row * _ROW + 7)
    total = tl.zeros([BLOCK], dtype=tl.float32)  # [BLOCK]
    for start in range(0, CHUNK, BLOCK):
        first = begin + start
        offsets = first + tl.arange(0, BLOCK)  # [BLOCK]
        if first + BLOCK <= numel:
            g = tl.load(grad + offsets).to(tl.float32)
        else:
            g = tl.load(grad + offsets, mask=offsets < numel, other=0.0).to(tl.float32)
        total += g * g
    tl.store(partials + program, tl.sum(total.to(tl.float64), axis=0))


@triton.jit
def prepare_kernel(
    table, hyper, control, squares, status, coefficients, shared, count, HAS_SQUARES: tl.constexpr, BLOCK: tl.constexpr
):
    """Decides clipping and skipping, counts the steps, and reduces the hyperparameters to two factors a tensor."""
    momentum = tl.load(control)
    max_norm = tl.load(control + 1)
    scale = tl.load(control + 2)
    found_inf = tl.load(control + 3)
    norm = momentum * 0.0
    if HAS_SQUARES:
        norm = tl.sqrt(tl.load(squares)) / scale
    skip = (found_inf != 0.0) | ((norm - norm) != 0.0)  # infinity and NaN differ from themselves here
    clip = tl.minimum(max_norm / (norm + _CLIP_EPS), 1.0)
    program = tl.program_id(0)
    if program == 0:
        tl.store(shared, (clip / scale).to(tl.float32))
        tl.store(shared + 1, (1.0 - momentum).to(tl.float32))
        tl.store(shared + 2, skip.to(tl.float32))
        tl.store(status, norm)
        tl.store(status + 1, skip.to(tl.float64))
        tl.store(status + 2, tl.load(status + 2) + skip.to(tl.float64))
    rows = program * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = rows < count
    entry = table + rows.to(tl.int64) * _ROW
    group = hyper + tl.load(entry + 8, mask=inside, other=0) * _HYPER
    step_pointer = tl.load(entry + 3, mask=inside, other=0).to(tl.pointer_type(tl.float32))
    step = tl.load(step_pointer, mask=inside, other=0.0) + 1.0
    steps = step.to(tl.float64)
    lr = tl.load(group, mask=inside, other=0.0)
    power1 = tl.exp(steps * tl.log(tl.load(group + 1, mask=inside, other=0.5)))
    power2 = tl.exp(steps * tl.log(tl.load(group + 2, mask=inside, other=0.5)))
    tl.store(coefficients + 2 * rows, (lr / (1.0 - power1)).to(tl.float32), mask=inside)
    tl.store(coefficients + 2 * rows + 1, (1.0 / tl.sqrt(1.0 - power2)).to(tl.float32), mask=inside)
    tl.store(step_pointer, tl.where(skip, step - 1.0, step), mask=inside)


@triton.jit
def _step_block(
    pointers, scalars, offsets, inside, TARGET: tl.constexpr, PARAM_SHADOW: tl.constexpr, TARGET_SHADOW: tl.constexpr
):
    """One block of elements through AdamW and EMA; `inside` is None for a whole block."""
    param, grad, exp_avg, exp_avg_sq, target, param_shadow, target_shadow = pointers
    decay, weight1, beta2, weight2, eps, step_size, correction2, grad_factor, target_weight = scalars
    other: tl.constexpr = None if inside is None else 0.0
    g = tl.load(grad + offsets, mask=inside, other=other).to(tl.float32) * grad_factor  # [BLOCK]
    m = lerp(tl.load(exp_avg + offsets, mask=inside, other=other), g, weight1)
    v = tl.fma(weight2 * g, g, tl.load(exp_avg_sq + offsets, mask=inside, other=other) * beta2)
    denominator = tl.fma(tl.sqrt_rn(v), tl.zeros_like(v) + correction2, tl.zeros_like(v) + eps)
    p = tl.load(param + offsets, mask=inside, other=other) * decay
    p = tl.fma(tl.zeros_like(v) - step_size, tl.div_rn(m, denominator), p)
    tl.store(exp_avg + offsets, m, mask=inside)
    tl.store(exp_avg_sq + offsets, v, mask=inside)
    tl.store(param + offsets, p, mask=inside)
    if PARAM_SHADOW:
        tl.store(param_shadow + offsets, p.to(param_shadow.dtype.element_ty), mask=inside)
    if TARGET:
        k = lerp(tl.load(target + offsets, mask=inside, other=other), p, target_weight)
        tl.store(target + offsets, k, mask=inside)
        if TARGET_SHADOW:
            tl.store(target_shadow + offsets, k.to(target_shadow.dtype.element_ty), mask=inside)


@triton.jit
def adamw_ema_kernel(
    table,
    grads,
    chunks,
    hyper,
    coefficients,
    shared,
    GRAD: tl.constexpr,
    TARGET: tl.constexpr,  # whether the tensors have targets
    PARAM_SHADOW: tl.constexpr,  # element type, or None without shadows
    TARGET_SHADOW: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program updates CHUNK elements of one tensor."""
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(chunks + 2 * program).to(tl.int64)
    begin = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK
    entry = table + row * _ROW
    HAS_PARAM_SHADOW: tl.constexpr = PARAM_SHADOW is not None
    HAS_TARGET_SHADOW: tl.constexpr = TARGET_SHADOW is not None
    param = tl.load(entry).to(tl.pointer_type(tl.float32))
    grad = tl.load(grads + row).to(tl.pointer_type(GRAD))
    exp_avg = tl.load(entry + 1).to(tl.pointer_type(tl.float32))
    exp_avg_sq = tl.load(entry + 2).to(tl.pointer_type(tl.float32))
    target = tl.load(entry + 4).to(tl.pointer_type(tl.float32))
    param_shadow = tl.load(entry + 5).to(tl.pointer_type(PARAM_SHADOW if HAS_PARAM_SHADOW else tl.float32))
    target_shadow = tl.load(entry + 6).to(tl.pointer_type(TARGET_SHADOW if HAS_TARGET_SHADOW else tl.float32))
    if ALIGNED:  # 16-byte accesses; an address read from memory carries no alignment that the compiler could see
        param, grad = tl.multiple_of(param, 16), tl.multiple_of(grad, 16)
        exp_avg, exp_avg_sq = tl.multiple_of(exp_avg, 16), tl.multiple_of(exp_avg_sq, 16)
        target = tl.multiple_of(target, 16)
        param_shadow, target_shadow = tl.multiple_of(param_shadow, 16), tl.multiple_of(target_shadow, 16)
    numel = tl.load(entry + 7)
    group = hyper + tl.load(entry + 8) * _HYPER
    beta1, beta2 = tl.load(group + 1), tl.load(group + 2)
    scalars = (
        (1.0 - tl.load(group) * tl.load(group + 4)).to(tl.float32),
        (1.0 - beta1).to(tl.float32),
        beta2.to(tl.float32),
        (1.0 - beta2).to(tl.float32),
        tl.load(group + 3).to(tl.float32),
        tl.load(coefficients + 2 * row),
        tl.load(coefficients + 2 * row + 1),
        tl.load(shared),
        tl.load(shared + 1),
    )
    pointers = (param, grad, exp_avg, exp_avg_sq, target, param_shadow, target_shadow)
    if tl.load(shared + 2) == 0.0:
        for start in range(0, CHUNK, BLOCK):
            first = begin + start
            offsets = first + tl.arange(0, BLOCK)  # [BLOCK]
            # A whole block needs no mask, and a mask of unknown alignment would split its accesses into single
            # elements.
            if first + BLOCK <= numel:
                _step_block(pointers, scalars, offsets, None, TARGET, HAS_PARAM_SHADOW, HAS_TARGET_SHADOW)
            elif first < numel:
                _step_block(pointers, scalars, offsets, offsets < numel, TARGET, HAS_PARAM_SHADOW, HAS_TARGET_SHADOW)


def launch_sum_of_squares(
    table: torch.Tensor,
    grads: torch.Tensor,
    chunks: torch.Tensor,
    partials: torch.Tensor,
    *,
    grad_dtype: torch.dtype,
    aligned: bool,
    chunk: int,
) -> None:
    """Writes one float64 partial sum a program."""
    sum_of_squares_kernel[(chunks.shape[0],)](
        table,
        grads,
        chunks,
        partials,
        GRAD=TRITON_DTYPES[grad_dtype],
        ALIGNED=aligned,
        CHUNK=chunk,
        BLOCK=_BLOCK,
        num_warps=4,
    )


def launch_prepare(
    table: torch.Tensor,
    hyper: torch.Tensor,
    control: torch.Tensor,
    squares: torch.Tensor,
    status: torch.Tensor,
    coefficients: torch.Tensor,
    shared: torch.Tensor,
) -> None:
    """Clipping, skipping, step counters and bias corrections."""
    prepare_kernel[(triton.cdiv(table.shape[0], _PREPARE_BLOCK),)](
        table,
        hyper,
        control,
        squares,
        status,
        coefficients,
        shared,
        table.shape[0],
        HAS_SQUARES=squares.numel() > 0,
        BLOCK=_PREPARE_BLOCK,
        num_warps=4,
    )


def launch_step(
    table: torch.Tensor,
    grads: torch.Tensor,
    chunks: torch.Tensor,
    hyper: torch.Tensor,
    coefficients: torch.Tensor,
    shared: torch.Tensor,
    *,
    grad_dtype: torch.dtype,
    target: bool,
    param_shadow: torch.dtype | None,
    target_shadow: torch.dtype | None,
    aligned: bool,
    chunk: int,
) -> None:
    """Updates the tensors of one combination of dtypes."""
    adamw_ema_kernel[(chunks.shape[0],)](
        table,
        grads,
        chunks,
        hyper,
        coefficients,
        shared,
        GRAD=TRITON_DTYPES[grad_dtype],
        TARGET=target,
        PARAM_SHADOW=None if param_shadow is None else TRITON_DTYPES[param_shadow],
        TARGET_SHADOW=None if target_shadow is None else TRITON_DTYPES[target_shadow],
        ALIGNED=aligned,
        CHUNK=chunk,
        BLOCK=_BLOCK,
        num_warps=4,
    )


def aot_cases(quick: bool = False) -> list[AotCase]:
    """Configurations of the compile gate: gradients in float32 and bfloat16, with and without target and shadows."""
    combinations: list[tuple[Any, bool, Any, Any, bool]] = [
        (tl.float32, True, tl.bfloat16, tl.bfloat16, True),
        (tl.float32, True, None, None, True),
        (tl.float32, False, None, None, False),
        (tl.bfloat16, True, tl.bfloat16, tl.bfloat16, True),
    ]
    cases = [_step_case(*combination) for combination in (combinations[:1] if quick else combinations)]
    pointers = {"table": "*i64", "hyper": "*fp64", "control": "*fp64", "squares": "*fp64", "status": "*fp64"}
    prepare = AotCase(
        name="adamw_ema-prepare",
        kernel=prepare_kernel,
        signature={**pointers, "coefficients": "*fp32", "shared": "*fp32", "count": "i32"},
        constants={"HAS_SQUARES": True, "BLOCK": _PREPARE_BLOCK},
    )
    squares = [
        AotCase(
            name=f"adamw_ema-sum_of_squares-{grad}",
            kernel=sum_of_squares_kernel,
            signature={"table": "*i64", "grads": "*i64", "chunks": "*i32", "partials": "*fp64"},
            constants={"GRAD": grad, "ALIGNED": True, "CHUNK": 16384, "BLOCK": _BLOCK},
        )
        for grad in (tl.float32, tl.bfloat16)
    ]
    return [*cases, prepare, *squares]


def _step_case(grad: Any, target: bool, param_shadow: Any, target_shadow: Any, aligned: bool) -> AotCase:
    kind = "target" if target else "alone"
    return AotCase(
        name=f"adamw_ema-{grad}-{kind}-{param_shadow}-{target_shadow}-{'aligned' if aligned else 'unaligned'}",
        kernel=adamw_ema_kernel,
        signature={
            "table": "*i64",
            "grads": "*i64",
            "chunks": "*i32",
            "hyper": "*fp64",
            "coefficients": "*fp32",
            "shared": "*fp32",
        },
        constants={
            "GRAD": grad,
            "TARGET": target,
            "PARAM_SHADOW": param_shadow,
            "TARGET_SHADOW": target_shadow,
            "ALIGNED": aligned,
            "CHUNK": 16384,
            "BLOCK": _BLOCK,
        },
    )
