"""VICReg in plain PyTorch, in the form of its paper's code and of eb_jepa's."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class VICRegTerms(NamedTuple):
    """The weighted sum, which carries the gradient, and its terms before their weights, detached."""

    loss: Tensor
    invariance: Tensor
    variance: Tensor
    covariance: Tensor


# Weights of the three terms, where the caller gives none.
DEFAULT_WEIGHTS = {"paper": (25.0, 25.0, 1.0), "eb_jepa": (1.0, 1.0, 1.0)}


def vicreg_loss(
    x: Tensor,
    y: Tensor | None = None,
    *,
    weights: tuple[float, float, float] | None = None,
    margin: float = 1.0,
    eps: float = 1e-4,
    convention: str = "paper",
) -> VICRegTerms:
    """The unfused twin of `jepa_kernels.vicreg_loss`: same arguments, same result up to rounding."""
    exact = torch.promote_types(x.dtype, torch.float32)
    views = [view.to(exact) for view in ((x,) if y is None else (x, y))]
    size = x.shape[1]
    variance = covariance = views[0].new_zeros(())
    for view in views:
        centred = view - view.mean(0)
        hinge = F.relu(margin - torch.sqrt(centred.var(0) + eps)).mean()
        matrix = centred.t() @ centred / (len(view) - 1)
        off_diagonal = matrix - torch.diag(torch.diagonal(matrix))
        variance = variance + (hinge / len(views) if convention == "paper" else hinge)
        covariance = covariance + off_diagonal.square().sum() / (
            size if convention == "paper" else max(size * (size - 1), 1)
        )
    invariance = F.mse_loss(views[0], views[1]) if y is not None else variance.new_zeros(())
    a, b, c = weights or DEFAULT_WEIGHTS[convention]
    total = a * invariance + b * variance + c * covariance
    return VICRegTerms(total, invariance.detach(), variance.detach(), covariance.detach())
