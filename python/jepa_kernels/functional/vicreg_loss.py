"""`vicreg_loss`: variance, invariance and covariance terms from one covariance matrix a view."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.vicreg_loss import DEFAULT_WEIGHTS, VICRegTerms

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def vicreg_loss(
    x: Tensor,
    y: Tensor | None = None,
    *,
    weights: tuple[float, float, float] | None = None,
    margin: float = 1.0,
    eps: float = 1e-4,
    convention: str = "paper",
) -> VICRegTerms:
    """VICReg's loss of two views, or its variance and covariance terms of one; one matrix product a view.

    Formula: with C the unbiased covariance of a view, the hinge is mean over features of `relu(margin - sqrt(C[i, i] +
    eps))`, and the loss is `weights[0] * mse(x, y) + weights[1] * variance + weights[2] * covariance`. "paper":
    variance is the mean of the views' hinges, covariance the sum over views of the off-diagonal `C[i, j]**2` divided by
    D. "eb_jepa": variance is the sum of the hinges, covariance is divided by D * (D - 1). The standard deviation is
    taken from C's diagonal, so no second pass over x computes it.

    Shapes: x and y (N, D). Returns (loss, invariance, variance, covariance): scalars, the last three detached and
    without weights.

    Dtypes: float32, float64, bfloat16 or float16, one for both; computed in float32 (float64 for float64), gradients in
    the inputs' dtype.

    Args:
        weights: of invariance, variance and covariance; None stands for (25, 25, 1) in "paper" and (1, 1, 1) in
            "eb_jepa".

    Raises:
        TypeError: x or y is no tensor, or of a dtype not listed above.
        ValueError: shapes, dtypes or devices differ, fewer than two samples (no unbiased variance), no feature, unknown
        convention.

    Features of zero variance give the hinge `margin - sqrt(eps)` and a finite gradient; non-finite inputs make the loss
    NaN.

    Cost: 4 * N * D**2 FLOPs a view, forward and backward; x read twice forward, its centred copy kept and read once
    backward.

    Deterministic: yes, as far as the matrix product of the device is.

    Source: Bardes et al., VICReg (2022); Terver et al., eb_jepa (2026).

    Example:
        >>> import torch, jepa_kernels as jk
        >>> x = torch.zeros(8, 4, requires_grad=True)
        >>> terms = jk.vicreg_loss(x, torch.ones(8, 4))
        >>> [round(float(term), 2) for term in terms[1:]]
        [1.0, 0.99, 0.0]
    """
    _check(x, y, convention)
    exact = torch.promote_types(x.dtype, torch.float32)
    views = [view.to(exact) for view in ((x,) if y is None else (x, y))]
    terms = [spread(view, margin, eps) for view in views]
    variance = torch.stack([hinge for hinge, _ in terms]).sum()
    covariance = torch.stack([squares for _, squares in terms]).sum()
    size = x.shape[1]
    if convention == "paper":
        variance, covariance = variance / len(views), covariance / size
    else:
        covariance = covariance / max(size * (size - 1), 1)
    invariance = torch.nn.functional.mse_loss(views[0], views[1]) if y is not None else variance.new_zeros(())
    a, b, c = weights or DEFAULT_WEIGHTS[convention]
    return VICRegTerms(
        a * invariance + b * variance + c * covariance, invariance.detach(), variance.detach(), covariance.detach()
    )


def spread(x: Tensor, margin: float, eps: float) -> tuple[Tensor, Tensor]:
    """Mean hinge of the standard deviations of x (N, D), and the sum of its squared off-diagonal covariances."""
    return _Spread.apply(x, margin, eps)


def _check(x: Tensor, y: Tensor | None, convention: str) -> None:
    for name, value in (("x", x), ("y", y)):
        if value is None and name == "y":
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"vicreg_loss: {name} is {type(value).__name__}, not a tensor")
        if value.dtype not in _FLOATS:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATS)
            raise TypeError(f"vicreg_loss: {name} has dtype {value.dtype}; convert it to one of {names}")
    if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
        raise ValueError(
            f"vicreg_loss: x has shape {tuple(x.shape)}; expected (N, D) with at least two samples and one feature"
        )
    if y is not None and (y.shape != x.shape or y.dtype != x.dtype or y.device != x.device):
        raise ValueError(
            f"vicreg_loss: y is {tuple(y.shape)}, {y.dtype} on {y.device}, x is {tuple(x.shape)}, {x.dtype} on "
            f"{x.device}; make them alike"
        )
    if convention not in DEFAULT_WEIGHTS:
        raise ValueError(f"vicreg_loss: unknown convention {convention!r}: one of {', '.join(DEFAULT_WEIGHTS)}")


class _Spread(torch.autograd.Function):
    """(mean hinge of the standard deviations, sum of squared off-diagonal covariances) of one view (N, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, margin: float, eps: float) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            centred = x - x.mean(0)
            covariance = torch.mm(centred.t(), centred).div_(x.shape[0] - 1)  # [D, D]
        deviation = torch.diagonal(covariance).add(eps).sqrt_()
        covariance.fill_diagonal_(0.0)
        ctx.save_for_backward(centred, covariance, deviation)
        ctx.margin = margin
        return torch.relu(margin - deviation).mean(), covariance.square().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_hinge: Tensor, of_squares: Tensor) -> tuple[Tensor, None, None]:
        """centred times its covariance's symmetric gradient; the columns have mean zero, so nothing is subtracted."""
        centred, covariance, deviation = ctx.saved_tensors
        of_covariance = covariance * (4 * of_squares)
        below = (deviation < ctx.margin).to(deviation.dtype)
        torch.diagonal(of_covariance).copy_(-of_hinge * below / (deviation * deviation.shape[0]))
        with torch.autocast(centred.device.type, enabled=False):
            return torch.mm(centred, of_covariance).div_(centred.shape[0] - 1), None, None
