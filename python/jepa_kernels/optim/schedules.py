"""Momentum of the target encoder as a function of the step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConstantMomentum:
    """The same momentum at every step: V-JEPA 2 uses 0.99925.

    Raises:
        ValueError: the momentum is outside [0, 1] or NaN.
    """

    momentum: float = 0.99925

    def __post_init__(self) -> None:
        _check("momentum", self.momentum)

    def __call__(self, step: int) -> float:
        return self.momentum


@dataclass(frozen=True)
class LinearMomentum:
    """`start + step * (end - start) / total_steps`, and `end` from `total_steps` on.

    I-JEPA goes from 0.996 to 1, V-JEPA from 0.998 to 1. Their `total_steps` is iterations an epoch * epochs *
    `ipe_scale`, which is 1.0 for I-JEPA and 1.25 for V-JEPA, so that training ends before the schedule does.

    Raises:
        ValueError: a momentum is outside [0, 1] or NaN, or `total_steps` is below 1.

    Example:
        >>> LinearMomentum(0.996, 1.0, total_steps=4)(2)
        0.998
    """

    start: float
    end: float
    total_steps: int

    def __post_init__(self) -> None:
        _check("start", self.start)
        _check("end", self.end)
        if self.total_steps < 1:
            raise ValueError(f"LinearMomentum: total_steps must be at least 1, got {self.total_steps}")

    def __call__(self, step: int) -> float:
        if step >= self.total_steps:
            return self.end
        return self.start + step * (self.end - self.start) / self.total_steps


def _check(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:  # false for NaN, too
        raise ValueError(f"momentum schedule: {name} must lie in [0, 1], got {value}")
