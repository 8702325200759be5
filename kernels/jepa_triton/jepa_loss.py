"""JEPA loss: gathers the target row, normalises it in registers, penalises the difference; backward does it again."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import AotCase

KINDS = {"absolute": 0, "smooth_l1": 1, "square": 2, "power": 3}
_ABSOLUTE = tl.constexpr(0)
_SMOOTH = tl.constexpr(1)
_SQUARE = tl.constexpr(2)
_TILE = 2048  # elements a program holds: rows of a small width share one


@triton.jit
def _sign(d):
    """1, -1, and d itself where it is neither positive nor negative: 0 or NaN."""
    return tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, d))


@triton.jit
def _penalty(d, parameter, KIND: tl.constexpr):
    size = tl.abs(d)
    if KIND == _ABSOLUTE:
        value = size
    elif KIND == _SMOOTH:
        value = tl.where(size < parameter, 0.5 * d * d / parameter, size - 0.5 * parameter)
    elif KIND == _SQUARE:
        value = parameter * d * d
    else:
        value = tl.exp2(parameter * tl.log2(size)) / parameter
    return value


@triton.jit
def _derivative(d, parameter, KIND: tl.constexpr):
    if KIND == _ABSOLUTE:
        value = _sign(d)
    elif KIND == _SMOOTH:
        value = tl.where(tl.abs(d) < parameter, d / parameter, _sign(d))
    elif KIND == _SQUARE:
        value = 2 * parameter * d
    else:
        value = tl.exp2((parameter - 1) * tl.log2(tl.abs(d))) * _sign(d)
    return value


@triton.jit
def _standardise(x, inside, eps, WIDTH: tl.constexpr):
    """(x - mean) / sqrt(var + eps) over the columns inside; zeros outside. [ROWS, BLOCK]"""
    mean = tl.sum(x, axis=1) / WIDTH  # [ROWS]
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / WIDTH
    return centred * (1.0 / tl.sqrt(variance + eps))[:, None]


@triton.jit
def _difference(
    pred, target, rows, norm_weight, norm_bias, norm_eps, eps, count, pred_stride, target_stride,
    AFFINE: tl.constexpr, NORMALIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """pred - layer_norm(target) of ROWS rows [ROWS, BLOCK], zero outside; the rows and their target rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    column = tl.arange(0, BLOCK)  # [BLOCK]
    source = row if rows is None else tl.load(rows + row, mask=row < count, other=-1)
    inside = ((row < count) & (source >= 0))[:, None] & (column < WIDTH)[None, :]
    x = tl.load(target + source[:, None] * target_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if AFFINE:
        x = _standardise(x, inside, norm_eps, WIDTH)
        if norm_weight is not None:
            x *= tl.load(norm_weight + column, mask=column < WIDTH, other=0.0)[None, :]
        if norm_bias is not None:
            x += tl.load(norm_bias + column, mask=column < WIDTH, other=0.0)[None, :]
    if NORMALIZE:
        x = _standardise(x, inside, eps, WIDTH)
    z = tl.load(pred + row[:, None] * pred_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, z - x, 0.0), row, source


@triton.jit(do_not_specialize=["count"])  # it changes with the masks
def jepa_loss_forward_kernel(
    pred, target, rows, weights, norm_weight, norm_bias, partial, parameter, norm_eps, eps, count,
    pred_stride: tl.int64, target_stride: tl.int64, KIND: tl.constexpr, AFFINE: tl.constexpr, NORMALIZE: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partial[program] = weighted sum of the penalties of ROWS rows."""
    d, row, source = _difference(
        pred,
        target,
        rows,
        norm_weight,
        norm_bias,
        norm_eps,
        eps,
        count,
        pred_stride,
        target_stride,
        AFFINE,
        NORMALIZE,
        WIDTH,
        ROWS,
        BLOCK,
    )
    column = tl.arange(0, BLOCK)
    losses = tl.sum(tl.where((column < WIDTH)[None, :], _penalty(d, parameter, KIND), 0.0), axis=1)  # [ROWS]
    used = (row < count) & (source != -1)
    losses = tl.where(source < -1, float("nan"), losses)
    if weights is not None:
        losses *= tl.load(weights + row, mask=row < count, other=0.0)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(used, losses, 0.0), axis=0))


@triton.jit(do_not_specialize=["count"])  # it changes with the masks
def jepa_loss_backward_kernel(
    grad, grad_pred, pred, target, rows, weights, norm_weight, norm_bias, parameter, norm_eps, eps, scale, count,
    pred_stride: tl.int64, target_stride: tl.int64, KIND: tl.constexpr, AFFINE: tl.constexpr, NORMALIZE: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_pred = grad * scale * weights * derivative of the penalty: zeros for padding, NaN for a row out of range."""
    d, row, source = _difference(
        pred,
        target,
        rows,
        norm_weight,
        norm_bias,
        norm_eps,
        eps,
        count,
        pred_stride,
        target_stride,
        AFFINE,
        NORMALIZE,
        WIDTH,
        ROWS,
        BLOCK,
    )
    column = tl.arange(0, BLOCK)
    factor = tl.load(grad) * scale + tl.zeros([ROWS], tl.float32)  # [ROWS]
    if weights is not None:
        factor *= tl.load(weights + row, mask=row < count, other=0.0)
    gradient = _derivative(d, parameter, KIND) * factor[:, None]  # [ROWS, BLOCK]
    gradient = tl.where((source < 0)[:, None], tl.where(source < -1, float("nan"), 0.0)[:, None], gradient)
    inside = (row < count)[:, None] & (column < WIDTH)[None, :]
    tl.store(grad_pred + row[:, None] * WIDTH + column[None, :], gradient.to(grad_pred.dtype.element_ty), mask=inside)


def _geometry(width: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and its warps."""
    block = max(triton.next_power_of_2(width), 16)
    return max(_TILE // block, 1), block, min(max(block // 1024, 4), 16)


def forward(
    pred: torch.Tensor,
    target: torch.Tensor,
    rows: torch.Tensor | None,
    weights: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    norm_eps: float | None,
    kind: str,
    parameter: float,
    eps: float | None,
) -> torch.Tensor:
    """float32 partial sums of the weighted penalties, to be added up in order."""
    count, width = pred.shape
    tile, block, warps = _geometry(width)
    programs = triton.cdiv(count, tile) if width else 0
    partial = pred.new_empty((programs,), dtype=torch.float32)
    if programs:
        jepa_loss_forward_kernel[(programs,)](
            pred, target, rows, weights, norm_weight, norm_bias, partial, parameter, norm_eps or 0.0, eps or 0.0, count,
            pred.stride(0), target.stride(0), KIND=KINDS[kind], AFFINE=norm_eps is not None, NORMALIZE=eps is not None,
            WIDTH=width, ROWS=tile, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return partial


def backward(
    grad: torch.Tensor,
    grad_pred: torch.Tensor,
    pred: torch.Tensor,
    target: torch.Tensor,
    rows: torch.Tensor | None,
    weights: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    norm_eps: float | None,
    kind: str,
    parameter: float,
    eps: float | None,
    scale: float,
) -> None:
    """Writes every element of the contiguous `grad_pred`; `grad` is a scalar tensor, read on the device."""
    count, width = pred.shape
    tile, block, warps = _geometry(width)
    if count and width:
        jepa_loss_backward_kernel[(triton.cdiv(count, tile),)](
            grad, grad_pred, pred, target, rows, weights, norm_weight, norm_bias, parameter, norm_eps or 0.0,
            eps or 0.0, scale, count, pred.stride(0), target.stride(0), KIND=KINDS[kind], AFFINE=norm_eps is not None,
            NORMALIZE=eps is not None, WIDTH=width, ROWS=tile, BLOCK=block, num_warps=warps,
        )  # fmt: skip


_SCALARS = {
    "parameter": "fp32",
    "norm_eps": "fp32",
    "eps": "fp32",
    "count": "i32",
    "pred_stride": "i64",
    "target_stride": "i64",
}


def _case(backward: bool, pred: str, target: str, width: int, kind: str, gather: bool, affine: bool) -> AotCase:
    tile, block, warps = _geometry(width)
    signature = {"pred": f"*{pred}", "target": f"*{target}", **_SCALARS}
    signature |= {"grad": "*fp32", "grad_pred": f"*{pred}", "scale": "fp32"} if backward else {"partial": "*fp32"}
    optional = {"rows": "*i64", "weights": "*fp32"} if gather else {}
    optional |= {"norm_weight": "*fp32", "norm_bias": "*fp32"} if affine else {}
    absent = {name: None for name in ("rows", "weights", "norm_weight", "norm_bias") if name not in optional}
    constants = {
        "KIND": KINDS[kind],
        "AFFINE": affine,
        "NORMALIZE": True,
        "WIDTH": width,
        "ROWS": tile,
        "BLOCK": block,
    }
    direction = "backward" if backward else "forward"
    return AotCase(
        name=f"jepa_loss_{direction}-{pred}-{target}-{width}-{kind}{'-gather' * gather}{'-affine' * affine}",
        kernel=jepa_loss_backward_kernel if backward else jepa_loss_forward_kernel,
        signature=signature | optional,
        constants=constants | absent,
        num_warps=warps,
    )


def aot_cases(quick: bool = False) -> list[AotCase]:
    """Configurations of the compile gate: widths of models, every kind, with and without ids and the affine norm."""
    combinations = [
        ("bf16", "bf16", 1024, "absolute", True, False),
        ("fp32", "fp32", 1408, "smooth_l1", True, True),
        ("bf16", "fp32", 1280, "square", False, False),
        ("fp16", "fp16", 384, "power", True, False),
        ("fp32", "fp32", 16384, "absolute", True, True),
    ]
    return [
        _case(backward, *row) for row in (combinations[:2] if quick else combinations) for backward in (False, True)
    ]
