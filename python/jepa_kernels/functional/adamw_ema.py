"""`adamw_ema_`: AdamW, the target's EMA and low-precision copies of both, in one pass over the parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.adamw_ema import adamw_ema_ as _operator
from ._aliasing import check_aliasing
from .ema_update import checked_momentum

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SHADOWS = (torch.bfloat16, torch.float16)


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
    """One AdamW step, then one EMA step of the targets towards the new parameters, all in place; see `jk.AdamWEMA`
    for the optimiser.

    Formula: with s the sum of the squares of all gradients, n = sqrt(s) / grad_scale, c = min(1, max_grad_norm / (n
    + 1e-6)) and t = step + 1, each element of gradient g, parameter p, moments a and v, target k:

        g <- g * c / grad_scale
        a <- beta1 a + (1 - beta1) g                    v <- beta2 v + (1 - beta2) g^2
        p <- (1 - lr weight_decay) p - lr / (1 - beta1^t) * a / (sqrt(v) / sqrt(1 - beta2^t) + eps)
        k <- momentum k + (1 - momentum) p              as `jk.ema_update_`

    A shadow is the new value rounded to nearest. Where found_inf is not 0 or n is not finite, nothing is written:
    the step is skipped.

    Shapes: `params[i]`, its gradient, moments, target and shadows have one shape, any; `steps[i]` has one element.
    An entry None, or no list, stands for no target or shadow.

    Dtypes: parameters, moments, steps and targets float32 on the native backends, gradients float32, bfloat16 or
    float16, shadows bfloat16 or float16; the reference takes float64 and 16-bit state as well. Computed in float32
    (float64 for float64), the norm in float64.

    Args:
        params, grads, exp_avgs, exp_avg_sqs, steps: parameters and AdamW's state, as `torch.optim.AdamW` keeps it.
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
        targets, momentum: tensors of the target and the share of them that stays.
        param_shadows, target_shadows: low-precision copies to write.
        max_grad_norm: largest norm of all gradients together; None does not clip.
        grad_scale, found_inf: what a `GradScaler` knows: the gradients are divided by the first, a second other than
            0 skips the step.
        skip_nonfinite: skip the step if any gradient is infinite or NaN. Like clipping it costs one more pass over
            the gradients.

    Returns float64 (3,): the gradient norm n (0 if neither clipping nor skip_nonfinite asked for it), 1 if the step
    was skipped, and the same count again; on the device of the parameters.

    Raises:
        ValueError: lengths, shapes or devices differ, two tensors of the call share memory (gradients may, among each
            other), a momentum or beta outside its range, a negative lr, eps or weight decay, a max_grad_norm that is
            not positive.
        TypeError: something that is not a tensor, or a dtype outside the lists above.

    Cost: 28 bytes a parameter for AdamW, 8 for a target, 2 for each shadow, 4 for the norm, all float32; 20 FLOPs.

    Deterministic: yes, bit for bit, on each backend; backends differ by rounding.

    Source: AdamW of Loshchilov and Hutter (2019), as `torch.optim.AdamW` computes it; EMA as `jk.ema_update_`.

    Example:
        >>> import torch, jepa_kernels as jk
        >>> p, k = torch.ones(2), torch.ones(2)
        >>> state = torch.zeros(2), torch.zeros(2), torch.zeros(())
        >>> lists = [p], [torch.ones(2)], *([x] for x in state)
        >>> status = jk.adamw_ema_(*lists, lr=0.1, weight_decay=0.0, targets=[k], momentum=0.5)
        >>> p, k
        (tensor([0.9000, 0.9000]), tensor([0.9500, 0.9500]))
    """
    arguments = prepare(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        targets=targets,
        momentum=momentum,
        param_shadows=param_shadows,
        target_shadows=target_shadows,
        max_grad_norm=max_grad_norm,
        grad_scale=grad_scale,
        found_inf=found_inf,
        skip_nonfinite=skip_nonfinite,
    )
    with torch.no_grad():
        _operator(**arguments)
    return arguments["status"]


def prepare(
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
) -> dict[str, Any]:
    """Checks the call and returns the operator's arguments; nothing is changed before everything is checked."""
    params = list(params)
    device = params[0].device if params else torch.device("cpu")
    check_hyper(lr, betas, eps, weight_decay)
    check_max_norm(max_grad_norm)
    absent = torch.empty(0, device=device)
    lists: dict[str, list[Tensor]] = {
        "params": params,
        "grads": list(grads),
        "exp_avgs": list(exp_avgs),
        "exp_avg_sqs": list(exp_avg_sqs),
        "steps": list(steps),
    }
    for name, values in (("targets", targets), ("param_shadows", param_shadows), ("target_shadows", target_shadows)):
        lists[name] = [absent if value is None else value for value in (values or [None] * len(params))]
    check_lists(lists)
    moved = checked_momentum(momentum, device, "adamw_ema_")
    limit = math.inf if max_grad_norm is None else max_grad_norm
    return {
        **lists,
        "groups": [0] * len(params),
        "hyper": torch.tensor([[lr, *betas, eps, weight_decay]], dtype=torch.float64, device=device),
        "control": control_tensor((moved, limit, grad_scale, found_inf), device),
        "squares": torch.empty(0, dtype=torch.float64, device=device),
        "status": torch.zeros(3, dtype=torch.float64, device=device),
        "need_norm": skip_nonfinite or max_grad_norm is not None,
    }


def control_tensor(values: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """The numbers as one float64 tensor; those that are tensors are copied on the device, without waiting for it."""
    numbers = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
    control = torch.tensor(numbers, dtype=torch.float64, device=device)
    for index, value in enumerate(values):
        if isinstance(value, Tensor):
            control[index].copy_(value.reshape(()))
    return control


def check_hyper(lr: Any, betas: Sequence[float], eps: float, weight_decay: float) -> None:
    """Ranges of AdamW's hyperparameters; a tensor as lr is taken as it is."""
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not isinstance(value, Tensor) and not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"adamw_ema: {name} must be finite and not negative, got {value}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"adamw_ema: betas must be two numbers in [0, 1), got {tuple(betas)}")


def check_max_norm(max_grad_norm: float | None) -> None:
    """A positive number, or None."""
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"adamw_ema: max_grad_norm must be positive, or None for no clipping, got {max_grad_norm}")


def check_lists(lists: dict[str, list[Tensor]]) -> None:
    """Lengths, classes, dtypes, devices, shapes and overlaps of the lists of one step."""
    params = lists["params"]
    for name, tensors in lists.items():
        if len(tensors) != len(params):
            raise ValueError(f"adamw_ema: {len(params)} params but {len(tensors)} {name}; pass one for each")
        for index, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
            _check_tensor(name, index, tensor, param, params[0])
    for index, (target, shadow) in enumerate(zip(lists["targets"], lists["target_shadows"], strict=True)):
        if shadow.numel() and not target.numel():
            raise ValueError(f"adamw_ema: target_shadows[{index}] is given without targets[{index}]")
    if not torch.compiler.is_compiling():
        written = [
            (f"{name}[{index}]", tensor)
            for name, tensors in lists.items()
            if name != "grads"
            for index, tensor in enumerate(tensors)
        ]
        check_aliasing("adamw_ema", written, ((f"grads[{index}]", grad) for index, grad in enumerate(lists["grads"])))


def _check_tensor(name: str, index: int, tensor: Tensor, param: Tensor, first: Tensor) -> None:
    where = f"adamw_ema: {name}[{index}]"
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{where} is {type(tensor).__name__}, not a tensor")
    optional = name in ("targets", "param_shadows", "target_shadows")
    if optional and tensor.numel() == 0:
        return
    allowed = _SHADOWS if name.endswith("shadows") else _FLOATS
    if tensor.dtype not in allowed:
        raise TypeError(
            f"{where} has dtype {tensor.dtype}; make it one of "
            f"{', '.join(str(d).removeprefix('torch.') for d in allowed)}"
        )
    if tensor.device != first.device:
        raise ValueError(f"{where} is on {tensor.device}, params[0] on {first.device}; move them together")
    if name == "steps":
        if tensor.numel() != 1:
            raise ValueError(f"{where} has {tensor.numel()} elements; a step counter has one")
    elif tensor.shape != param.shape:
        raise ValueError(f"{where} has shape {tuple(tensor.shape)}, its parameter {tuple(param.shape)}")
    if name == "targets" and tensor.requires_grad:
        raise ValueError(f"{where} requires grad; call requires_grad_(False) on the target encoder")
