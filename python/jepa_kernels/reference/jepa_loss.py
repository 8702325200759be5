"""The JEPA prediction loss in plain PyTorch, as published: norm, gather, subtract, penalise, average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ragged import RaggedIds

Ids = Tensor | RaggedIds
Norm = nn.LayerNorm | tuple[Tensor | None, Tensor | None, float]
PADDING = -1


def jepa_loss(
    pred: Tensor | Sequence[Tensor],
    target: Tensor,
    ids: Ids | Sequence[Ids] | None = None,
    *,
    kind: str = "l1",
    beta: float = 1.0,
    power: float = 1.0,
    normalize: bool = True,
    eps: float = 1e-5,
    norm: Norm | None = None,
    weights: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    """The unfused twin of `jepa_kernels.jepa_loss`: same arguments, same result up to rounding."""
    masks = list(ids) if isinstance(ids, Sequence) else [ids]
    preds = list(pred.tensor_split(len(masks))) if isinstance(pred, Tensor) else list(pred)
    all_weights = (
        [None] * len(masks) if weights is None else [weights] if isinstance(weights, Tensor) else list(weights)
    )
    exact = torch.float64 if torch.float64 in (preds[0].dtype, target.dtype) else torch.float32
    h = target.to(exact)
    width = (h.shape[-1],)
    if norm is not None:
        weight, bias, norm_eps = (norm.weight, norm.bias, norm.eps) if isinstance(norm, nn.LayerNorm) else norm
        h = F.layer_norm(h, width, _as(weight, exact), _as(bias, exact), norm_eps)
    if normalize:
        h = F.layer_norm(h, width, eps=eps)
    total = h.new_zeros(())
    for z, mask, weight in zip(preds, masks, all_weights, strict=True):
        rows, kept = _gathered(h, mask)
        z = z.reshape(-1, width[0]).to(exact)[kept]
        losses = _penalty(z - rows[kept], kind, beta, power)
        if weight is not None:
            losses = losses * weight.to(exact).reshape(-1, 1)[kept]
        total = total + losses.sum() / max(losses.numel(), 1)
    return total / len(masks)


def _as(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _gathered(h: Tensor, ids: Ids | None) -> tuple[Tensor, Tensor]:
    """Target rows in the order of the predictions, and which of them are no padding."""
    if ids is None:
        rows = h.reshape(-1, h.shape[-1])
        return rows, torch.ones(len(rows), dtype=torch.bool, device=h.device)
    if isinstance(ids, RaggedIds):
        flat = ids.ids
        element = torch.repeat_interleave(torch.arange(h.shape[0], device=h.device), ids.cu_seqlens.diff())
    else:
        flat = ids.flatten()
        element = torch.arange(h.shape[0], device=h.device).repeat_interleave(ids.shape[1])
    return h[element, flat.clamp(min=0)], flat != PADDING


def _penalty(d: Tensor, kind: str, beta: float, power: float) -> Tensor:
    if kind == "smooth_l1":
        return F.smooth_l1_loss(d, torch.zeros_like(d), beta=beta, reduction="none")
    if kind == "l2":
        return d.square()
    return d.abs() if power == 1 else d.abs().pow(power) / power


def loss_of_rows(
    pred: Tensor,
    target: Tensor,
    rows: Tensor | None,
    weights: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
    kind: str,
    parameter: float,
    eps: float | None,
    scale: float,
) -> Tensor:
    """The operator `jepa_loss`: scale * sum of the weighted losses of pred (R, D) against rows of target (T, D).

    A row of -1 is padding; one below is out of range and makes the loss NaN. `norm_eps` and `eps` are None where the
    affine and the parameter-free layer norm are left out.
    """
    d = _difference(pred, target, rows, norm_weight, norm_bias, norm_eps, eps)
    if kind == "square":
        losses = parameter * d.square()
    elif kind == "smooth_l1":
        losses = _penalty(d, kind, parameter, 1.0)
    else:
        losses = _penalty(d, "l1", 1.0, parameter if kind == "power" else 1.0)
    return _weighted(losses, rows, weights).sum() * scale


def gradient_of_rows(
    grad: Tensor,
    pred: Tensor,
    target: Tensor,
    rows: Tensor | None,
    weights: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
    kind: str,
    parameter: float,
    eps: float | None,
    scale: float,
) -> Tensor:
    """The operator's gradient with respect to `pred`; NaN in a row that is out of range."""
    d = _difference(pred, target, rows, norm_weight, norm_bias, norm_eps, eps)
    if kind == "square":
        derivative = 2 * parameter * d
    elif kind == "smooth_l1":
        derivative = torch.where(d.abs() < parameter, d / parameter, _sign(d))
    elif kind == "power":
        derivative = d.abs().pow(parameter - 1) * _sign(d)
    else:
        derivative = _sign(d)
    return (_weighted(derivative, rows, weights) * (grad * scale)).to(pred.dtype)


def _difference(
    pred: Tensor,
    target: Tensor,
    rows: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
    eps: float | None,
) -> Tensor:
    exact = torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32
    h = target.to(exact)
    if rows is not None:
        h = h.index_select(0, rows.clamp(min=0)) if len(target) else h.new_zeros(pred.shape)
    if norm_eps is not None:
        h = F.layer_norm(h, h.shape[-1:], norm_weight, norm_bias, norm_eps)
    if eps is not None:
        h = F.layer_norm(h, h.shape[-1:], eps=eps)
    return pred.to(exact) - h


def _sign(d: Tensor) -> Tensor:
    """The sign, and NaN of NaN, which torch.sgn makes 0."""
    return torch.where(d.isnan(), d, d.sgn())


def _weighted(values: Tensor, rows: Tensor | None, weights: Tensor | None) -> Tensor:
    """Each row times its weight; zeros for padding, NaN for a row out of range."""
    if weights is not None:
        values = values * weights.unsqueeze(1)
    if rows is not None:
        values = values.masked_fill((rows == PADDING).unsqueeze(1), 0).masked_fill(
            (rows < PADDING).unsqueeze(1), torch.nan
        )
    return values
