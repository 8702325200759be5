"""AdamW, EMA target update and low-precision copies in plain PyTorch: the definition of what is right."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def adamw_ema_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    targets: Sequence[Tensor | None] | None = None,
    momentum: float | Tensor = 1.0,
    param_shadows: Sequence[Tensor | None] | None = None,
    target_shadows: Sequence[Tensor | None] | None = None,
    max_grad_norm: float | None = None,
    grad_scale: float | Tensor = 1.0,
    found_inf: float | Tensor = 0.0,
    skip_nonfinite: bool = True,
) -> Tensor:
    """The unfused twin of `jepa_kernels.adamw_ema_`: same arguments, same result up to rounding."""
    with torch.no_grad():
        squares = sum_of_squares(grads) if skip_nonfinite or max_grad_norm is not None else torch.zeros(())
        norm = math.sqrt(float(squares)) / float(grad_scale) if float(squares) >= 0 else math.nan
        if float(found_inf) != 0 or not math.isfinite(norm):
            return torch.tensor([norm, 1.0], dtype=torch.float64)
        clip = 1.0 if max_grad_norm is None else min(1.0, max_grad_norm / (norm + 1e-6))
        for index, param in enumerate(params):
            update_one(
                param,
                grads[index],
                exp_avgs[index],
                exp_avg_sqs[index],
                steps[index],
                hyper=(float(lr), *betas, eps, weight_decay),
                grad_factor=clip / float(grad_scale),
            )
            target = None if targets is None else targets[index]
            if target is not None:
                wide = torch.float64 if target.dtype == torch.float64 else torch.float32
                target.copy_(torch.lerp(target.to(wide), param.to(wide), 1.0 - float(momentum)))
            for shadows, value in ((param_shadows, param), (target_shadows, target)):
                shadow = None if shadows is None else shadows[index]
                if shadow is not None and value is not None:
                    shadow.copy_(value)
    return torch.tensor([norm, 0.0], dtype=torch.float64)


def sum_of_squares(grads: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of every element of every gradient, in float64."""
    if not grads:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([grad.double().square().sum() for grad in grads]).sum()


def update_one(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    hyper: tuple[float, float, float, float, float],
    grad_factor: float | Tensor,
) -> None:
    """AdamW on one parameter, computed in float32 (float64 for float64) and rounded once to each tensor's dtype."""
    lr, beta1, beta2, eps, weight_decay = hyper
    wide = torch.float64 if param.dtype == torch.float64 else torch.float32
    step += 1
    count = float(step)
    gradient = grad.to(wide) * grad_factor
    first = torch.lerp(exp_avg.to(wide), gradient, 1.0 - beta1)
    second = exp_avg_sq.to(wide) * beta2 + (1.0 - beta2) * gradient * gradient
    denominator = second.sqrt() / math.sqrt(1.0 - beta2**count) + eps
    decayed = param.to(wide) * (1.0 - lr * weight_decay)
    param.copy_(decayed - lr / (1.0 - beta1**count) * first / denominator)
    exp_avg.copy_(first)
    exp_avg_sq.copy_(second)
