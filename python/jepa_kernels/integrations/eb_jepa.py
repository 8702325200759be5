"""The official eb_jepa repository: its BCS and VICReg-type losses; from interfaces and formulas."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..functional.vicreg_loss import spread
from ..ops.sigreg import sigreg as characteristic_sums
from ..ops.sigreg import unit_directions
from .pieces import tensor_reason
from .targets import Target

EPS = 1e-4  # under the root of the variances
T_MAX, POINTS = 3.0, 10  # BCS: points evenly from -T_MAX to T_MAX


def _samples_reason(*views: Any) -> str | None:
    """None, or why matrices of samples (N, D) cannot go into the operators."""
    for x in views:
        reason = tensor_reason(x)
        if reason is not None:
            return reason
        if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 2:
            return "not a matrix of at least two samples and features"
        if x.shape != views[0].shape or x.dtype != views[0].dtype:
            return "views of several shapes or dtypes"
    return None


def _terms(x: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """The hinge of the standard deviations, and the mean of the squared off-diagonal covariances."""
    hinge, squares = spread(x.to(torch.promote_types(x.dtype, torch.float32)), margin, EPS)
    return hinge, squares / (x.shape[1] * (x.shape[1] - 1))


def _covariance(self: Any, x: Tensor) -> Tensor:
    return _terms(x, 1.0)[1]


def _covariance_reason(self: Any, x: Any) -> str | None:
    return _samples_reason(x)


def _vicreg(self: Any, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    margin = self.std_loss_fn.std_margin
    (hinge1, squares1), (hinge2, squares2) = _terms(z1, margin), _terms(z2, margin)
    invariance, variance, covariance = F.mse_loss(z1, z2), hinge1 + hinge2, squares1 + squares2
    return {
        "loss": invariance + self.std_coeff * variance + self.cov_coeff * covariance,
        "invariance_loss": invariance,
        "var_loss": variance,
        "cov_loss": covariance,
    }


def _vicreg_reason(self: Any, z1: Any, z2: Any) -> str | None:
    return _samples_reason(z1, z2) or _hooks(self)


def _vc(self: Any, x: Tensor, actions: Any = None) -> tuple[Tensor, Tensor, dict[str, float]]:
    features = self.proj(x.transpose(0, 1).flatten(1).transpose(0, 1))  # [B * T * H * W, C]
    if _samples_reason(features) is not None:
        deviation, covariance = self.std_loss_fn(features), self.cov_loss_fn(features)
    else:
        deviation, covariance = _terms(features, self.std_loss_fn.std_margin)
    loss = self.std_coeff * deviation + self.cov_coeff * covariance
    return loss, deviation + covariance, {"std_loss": deviation.item(), "cov_loss": covariance.item()}


def _vc_reason(self: Any, x: Any, actions: Any = None) -> str | None:
    return tensor_reason(x) or _hooks(self)


def _hooks(self: Any) -> str | None:
    inside = (self.std_loss_fn, self.cov_loss_fn)
    return "hooks on its parts" if any(part._forward_hooks or part._forward_pre_hooks for part in inside) else None


def _refuse_parts(self: Any) -> str | None:
    names = [type(part).__name__ for part in (self.std_loss_fn, self.cov_loss_fn)]
    if names != ["HingeStdLoss", "CovarianceLoss"] or not hasattr(self.std_loss_fn, "std_margin"):
        return f"its parts are {' and '.join(names)}, not a known HingeStdLoss and CovarianceLoss"
    return None


def _bcs(self: Any, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    directions = unit_directions(z1.detach(), self.num_slices, torch.tensor(self.step))
    self.step += 1
    # An even number of points from -t to t: the odd multiples of their half step, each standing for its negative, too. The
    # operator takes multiples of one step from 0, so it gives those between as well.
    step = T_MAX / (POINTS - 1)
    dtype = torch.get_autocast_dtype(z1.device.type) if torch.is_autocast_enabled(z1.device.type) else z1.dtype
    views = torch.stack([z1, z2]).to(dtype)
    sums = characteristic_sums(x=views, directions=directions.to(dtype), num_points=POINTS, t_max=T_MAX)
    sums = sums[:, :, 1::2]  # [2, 2, T, K]
    t = step * torch.arange(1, POINTS, 2, device=z1.device, dtype=sums.dtype)
    weights = 4 * step * torch.exp(-t.square() / 2)  # twice the distance of the points, which is two steps
    weights[-1] /= 2
    cosine, sine = (sums / z1.shape[0]).unbind(1)  # [2, T, K]
    error = (cosine - torch.exp(-t.square() / 2)[:, None]).square() + sine.square()
    statistic = (weights[:, None] * error).sum(1).mean()
    invariance = F.mse_loss(z1, z2)
    return {"loss": invariance + self.lmbd * statistic, "bcs_loss": statistic, "invariance_loss": invariance}


def _bcs_reason(self: Any, z1: Any, z2: Any) -> str | None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return "several processes, whose means the original joins"
    return _samples_reason(z1, z2)


_SPREAD = "variance and covariance from one product, without a copy of its off-diagonal elements"

TARGETS = (
    Target(
        "eb_jepa",
        "CovarianceLoss",
        (("x",),),
        ("off_diagonal",),
        _SPREAD,
        _covariance,
        _covariance_reason,
        probe=lambda _self: torch.randn(5, 3),
    ),
    Target(
        "eb_jepa",
        "VICRegLoss",
        (("z1", "z2"),),
        ("std_coeff", "cov_coeff", "std_loss_fn", "cov_loss_fn"),
        _SPREAD,
        _vicreg,
        _vicreg_reason,
        _refuse_parts,
    ),
    Target(
        "eb_jepa",
        "VCLoss",
        (("x", "actions"),),
        ("std_coeff", "cov_coeff", "proj", "std_loss_fn", "cov_loss_fn"),
        _SPREAD,
        _vc,
        _vc_reason,
        _refuse_parts,
    ),
    Target(
        "eb_jepa",
        "BCS",
        (("z1", "z2"),),
        ("num_slices", "step", "lmbd"),
        "the statistic without a tensor of samples x slices x points",
        _bcs,
        _bcs_reason,
    ),
)
