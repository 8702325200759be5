"""The check before every timing: error against a float64 reference at most twice PyTorch's own.

Both errors are taken on the same inputs, already rounded to the dtype that is measured, as the largest and
the root-mean-square difference over each output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """`factor` x PyTorch's error, plus `floor` x the largest reference value.

    The floor keeps an output that PyTorch happens to compute exactly from asking for exactness: it is of the
    size of one rounding of the output dtype.
    """

    factor: float = 2.0
    floor: float = 1e-6


@dataclass(frozen=True)
class Check:
    """Outcome for one provider. Errors are the worst over its outputs, relative to the largest reference value.

    repeatable: whether a second call gave the same bits; None where none was made.
    """

    passed: bool
    max_error: float | None
    rms_error: float | None
    allowed_max: float | None
    allowed_rms: float | None
    message: str | None = None
    repeatable: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


UNCHECKED = Check(True, None, None, None, None, "a yardstick: other work, whose result is not compared")


def check(
    outputs: Sequence[Tensor],
    reference: Sequence[Tensor],
    low_precision: Sequence[Tensor],
    tolerance: Tolerance,
) -> Check:
    """Hold outputs against the float64 reference, by the error of PyTorch's low-precision outputs."""
    if len(outputs) != len(reference):
        return _failed(f"{len(outputs)} outputs, the reference has {len(reference)}")
    worst: Check | None = None
    for index, (out, want, low) in enumerate(zip(outputs, reference, low_precision, strict=True)):
        if out.shape != want.shape:
            return _failed(f"output {index} has shape {tuple(out.shape)}, the reference {tuple(want.shape)}")
        if not torch.isfinite(out).all():
            return _failed(f"output {index} has values that are not finite")
        one = _check_one(index, out, want, low, tolerance)
        if not one.passed:
            return one
        if worst is None or (one.max_error or 0.0) > (worst.max_error or 0.0):
            worst = one
    return worst if worst is not None else _failed("no output")


def _check_one(index: int, out: Tensor, want: Tensor, low: Tensor, tolerance: Tolerance) -> Check:
    scale = max(float(want.abs().max()), 1e-30) if want.numel() else 1.0
    max_error, rms_error = _errors(out, want, scale)
    low_max, low_rms = _errors(low, want, scale)
    allowed_max = tolerance.factor * low_max + tolerance.floor
    allowed_rms = tolerance.factor * low_rms + tolerance.floor
    passed = max_error <= allowed_max and rms_error <= allowed_rms
    message = None
    if not passed:
        message = (
            f"output {index}: relative error max {max_error:.2e} (allowed {allowed_max:.2e}), "
            f"rms {rms_error:.2e} (allowed {allowed_rms:.2e})"
        )
    return Check(passed, max_error, rms_error, allowed_max, allowed_rms, message)


def _errors(value: Tensor, want: Tensor, scale: float) -> tuple[float, float]:
    if want.numel() == 0:
        return 0.0, 0.0
    difference = value.detach().to(torch.float64) - want
    return float(difference.abs().max()) / scale, float(difference.square().mean().sqrt()) / scale


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two results are bitwise equal."""
    pairs = zip(first, second, strict=True)
    return all(a.shape == b.shape and torch.equal(_bits(a), _bits(b)) for a, b in pairs)


def _bits(x: Tensor) -> Tensor:
    """Integers of the same size, in which every NaN equals itself and zeros have their signs."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.detach().contiguous().view(whole[x.element_size()])


def _failed(message: str) -> Check:
    return Check(False, None, None, None, None, message)
