"""`ema_update_`: the momentum update of a target encoder, all tensors in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import plans as _plans
from ..ops.ema_update import PLANS, remember
from ..ops.ema_update import ema_update_ as _operator
from ._aliasing import check_aliasing

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SHADOWS = (torch.bfloat16, torch.float16)


def ema_update_(
    targets: Sequence[Tensor],
    online: Sequence[Tensor],
    momentum: float | Tensor,
    *,
    shadows: Sequence[Tensor] | None = None,
    stochastic_rounding: bool = False,
    seed: int | Tensor | None = None,
) -> None:
    """Moves every target towards its online tensor, in place, in one launch.

    Formula: `target <- momentum * target + (1 - momentum) * online`, computed as torch.lerp does: with w = 1 -
    momentum and d = online - target, `fma(w, d, target)` where w < 0.5, otherwise `fma(w - 1, d, online)`.

    Shapes: `targets[i]`, `online[i]` and `shadows[i]` have one shape, any. Lists are of one length; an empty list
    does nothing.

    Dtypes: float32, float64, bfloat16, float16, mixed at will; the sum is computed in float32 (float64 for float64
    targets) and rounded once to the target's dtype. `shadows` are bfloat16 or float16 copies of the updated target,
    rounded to nearest from the unrounded value, for running the target encoder without casts.

    Args:
        targets: tensors of the target encoder, updated in place; must not require grad.
        online: tensors of the online encoder, in the same order.
        momentum: share of the target that stays, in [0, 1]. Also a tensor of one float32 or float64 value on the
            targets' device, which a captured CUDA graph reads anew at every replay.
        shadows: low-precision copies to write, or None.
        stochastic_rounding: round bfloat16 targets up or down at random so that the expectation is exact. To
            nearest, a bfloat16 target at momentum 0.999 freezes: the step is below half a unit in its last place.
            Targets of other dtypes are not affected.
        seed: key of the random bits (Philox4x32-10, counter = place in the list and element): one seed gives the
            same bits on every backend. None draws one from torch's default generator. Pass another seed at every
            step; inside a CUDA graph, as an int64 tensor of one element.

    Raises:
        ValueError: lengths, shapes or devices differ, momentum is outside [0, 1] or NaN (on a GPU tensor looked at
            only with JEPA_KERNELS_CHECK=1, as that waits for the device), a target requires grad, or a target or
            shadow shares memory with another tensor of the call or within itself. Tensors seen before in the same
            places are not looked at again.
        TypeError: an element that is not a tensor, or a dtype outside the lists above.

    Cost: 12 bytes and 3 FLOPs an element in float32, plus 2 bytes with a shadow; 6 bytes all in bfloat16.

    Deterministic: yes, bit for bit, on every backend.

    Source: momentum encoder of He et al., MoCo (2020), as I-JEPA and V-JEPA use it.

    Example:
        >>> import torch, jepa_kernels as jk
        >>> target, online = torch.zeros(2), torch.ones(2)
        >>> jk.ema_update_([target], [online], momentum=0.75)
        >>> target
        tensor([0.2500, 0.2500])
    """
    targets, online, shadows = list(targets), list(online), list(shadows or ())
    run = PLANS.find(targets, online, shadows)
    if run is not None and True not in [target.requires_grad for target in targets]:  # checked when they first came
        scalars = _checked_scalars(momentum, stochastic_rounding, seed, targets[0].device)
        _plans.written([*targets, *shadows])  # before the update sweeps what was looked at out of the caches
        run(scalars["momentum"], stochastic_rounding, scalars["seed"])
        return
    arguments = prepare(targets, online, momentum, shadows=shadows, stochastic_rounding=stochastic_rounding, seed=seed)
    with torch.no_grad():
        _operator(**arguments)
    remember(targets, online, shadows)


def prepare(
    targets: Sequence[Tensor],
    online: Sequence[Tensor],
    momentum: float | Tensor,
    *,
    shadows: Sequence[Tensor] | None = None,
    stochastic_rounding: bool = False,
    seed: int | Tensor | None = None,
) -> dict[str, Any]:
    """Checks the call and returns the operator's arguments; nothing is changed before everything is checked."""
    targets, online, shadows = list(targets), list(online), list(shadows or ())
    if len(online) != len(targets):
        raise ValueError(f"ema_update_: {len(targets)} targets but {len(online)} online tensors; pass one for each")
    if shadows and len(shadows) != len(targets):
        raise ValueError(f"ema_update_: {len(targets)} targets but {len(shadows)} shadows; pass one for each, or None")
    for index, (target, source) in enumerate(zip(targets, online, strict=True)):
        _check_pair(index, target, source, targets[0])
        if shadows:
            _check_shadow(index, shadows[index], target)
    if not torch.compiler.is_compiling():
        written = [(f"target {index}", target) for index, target in enumerate(targets)]
        written += [(f"shadow {index}", shadow) for index, shadow in enumerate(shadows)]
        check_aliasing("ema_update_", written, ((f"online {index}", source) for index, source in enumerate(online)))
    scalars = _checked_scalars(
        momentum, stochastic_rounding, seed, targets[0].device if targets else torch.device("cpu")
    )
    moved, key = scalars["momentum"], scalars["seed"]
    return {
        "targets": targets,
        "online": online,
        "shadows": shadows,
        "momentum": 0.0 if isinstance(moved, Tensor) else moved,
        "momentum_tensor": moved if isinstance(moved, Tensor) else None,
        "stochastic_rounding": stochastic_rounding,
        "seed": 0 if isinstance(key, Tensor) else key,
        "seed_tensor": key if isinstance(key, Tensor) else None,
    }


def _checked_scalars(
    momentum: float | Tensor, stochastic: bool, seed: int | Tensor | None, device: torch.device
) -> dict[str, Any]:
    """Momentum and seed, checked; on a CPU as numbers, on other devices tensors stay tensors."""
    checked = checked_momentum(momentum, device)
    if stochastic and seed is None:
        seed = int(torch.randint(2**62, ()))
    return {"momentum": checked, "seed": _checked_seed(seed, device)}


def checked_momentum(momentum: float | Tensor, device: torch.device, name: str = "ema_update_") -> float | Tensor:
    """A momentum that lies in [0, 1]. A tensor on a GPU is looked at only with JEPA_KERNELS_CHECK=1, as that waits
    for the device."""
    if isinstance(momentum, Tensor):
        if momentum.numel() != 1 or momentum.dtype not in (torch.float32, torch.float64) or momentum.device != device:
            raise ValueError(
                f"{name}: a momentum tensor must hold one float32 or float64 value on {device}, got shape "
                f"{tuple(momentum.shape)}, "
                f"{momentum.dtype} on {momentum.device}"
            )
        if torch.compiler.is_compiling() or (device.type != "cpu" and os.environ.get("JEPA_KERNELS_CHECK") != "1"):
            return momentum.reshape(())
        momentum = float(momentum)
    if not (isinstance(momentum, int | float) and 0.0 <= momentum <= 1.0):  # false for NaN, too
        raise ValueError(f"{name}: momentum must lie in [0, 1], got {momentum}")
    return float(momentum)


def _checked_seed(seed: int | Tensor | None, device: torch.device) -> int | Tensor:
    if seed is None:
        return 0
    if isinstance(seed, Tensor):
        if seed.numel() != 1 or seed.dtype != torch.int64 or seed.device != device:
            raise ValueError(
                f"ema_update_: a seed tensor must hold one int64 value on {device}, got shape {tuple(seed.shape)}, "
                f"{seed.dtype} on "
                f"{seed.device}"
            )
        if torch.compiler.is_compiling() or device.type != "cpu":
            return seed.reshape(())
        seed = int(seed)
    if not (isinstance(seed, int) and 0 <= seed < 2**63):
        raise ValueError(f"ema_update_: seed must be an integer in [0, 2**63), got {seed}")
    return seed


def _check_pair(index: int, target: Tensor, source: Tensor, first: Tensor) -> None:
    for name, tensor in (("target", target), ("online", source)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"ema_update_: {name} {index} is {type(tensor).__name__}, not a tensor")
        if tensor.dtype not in _FLOATS:
            raise TypeError(
                f"ema_update_: {name} {index} has dtype {tensor.dtype}; convert it to one of {_names(_FLOATS)}"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"ema_update_: {name} {index} is on {tensor.device}, target 0 on {first.device}; move them together"
            )
    if target.shape != source.shape:
        raise ValueError(
            f"ema_update_: target {index} has shape {tuple(target.shape)}, its online tensor {tuple(source.shape)}"
        )
    if target.requires_grad:
        raise ValueError(
            f"ema_update_: target {index} requires grad; call requires_grad_(False) on the target encoder"
        )


def _check_shadow(index: int, shadow: Tensor, target: Tensor) -> None:
    if not isinstance(shadow, Tensor) or shadow.dtype not in _SHADOWS:
        found = shadow.dtype if isinstance(shadow, Tensor) else type(shadow).__name__
        raise TypeError(f"ema_update_: shadow {index} is {found}; make it a tensor of {_names(_SHADOWS)}")
    if shadow.shape != target.shape or shadow.device != target.device:
        raise ValueError(
            f"ema_update_: shadow {index} has shape {tuple(shadow.shape)} on {shadow.device}, its target "
            f"{tuple(target.shape)} on "
            f"{target.device}"
        )


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
