"""What an agent may do: bounds of an action, which of its numbers are planned, and how widely they are sampled at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActionSpace:
    """Bounds and first spread of the planned numbers of an action; the others stay 0.

    `low`, `high` and `std` have one entry for each planned number, `planned` says where it stands among the `size` numbers of
    an action. A planned result smaller in magnitude than its `dead_zone` becomes 0, as the published planner does with the
    gripper.

    Raises:
        ValueError: lengths differ, bounds are not finite or not in order, a spread is not positive, a place is out of range.

    Example:
        >>> space = ActionSpace.box([-1.0, -1.0], [1.0, 1.0])
        >>> space.clip(torch.tensor([[0.5, 3.0]]))
        (tensor([[0.5000, 1.0000]]), tensor(1))
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    std: tuple[float, ...]
    planned: tuple[int, ...]
    size: int
    dead_zone: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        counts = {len(self.low), len(self.high), len(self.std), len(self.planned), len(self.dead_zone or self.low)}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(f"low, high, std, planned and dead_zone must be equally long and not empty; got {sorted(counts)}")
        for low, high, std in zip(self.low, self.high, self.std, strict=True):
            if not -float("inf") < low < high < float("inf") or not 0.0 < std < float("inf"):
                raise ValueError(f"bounds must be finite, low < high, std > 0; got low {low}, high {high}, std {std}")
        if len(set(self.planned)) != len(self.planned) or not all(0 <= place < self.size for place in self.planned):
            raise ValueError(f"planned must name different places in 0..{self.size - 1}; got {self.planned}")

    @classmethod
    def box(cls, low: Sequence[float], high: Sequence[float]) -> ActionSpace:
        """All numbers planned, the first spread half the width of the bounds."""
        std = tuple((float(top) - float(bottom)) / 2 for bottom, top in zip(low, high, strict=True))
        return cls(tuple(map(float, low)), tuple(map(float, high)), std, tuple(range(len(std))), len(std))

    @classmethod
    def end_effector(cls, maxnorm: float = 0.05) -> ActionSpace:
        """V-JEPA 2-AC's arm: x, y, z within `maxnorm` metres and the gripper within 0.75, no rotation, of 7 numbers.

        >>> ActionSpace.end_effector(0.075).expand(torch.tensor([0.01, 0.02, 0.03, 0.5]))
        tensor([0.0100, 0.0200, 0.0300, 0.0000, 0.0000, 0.0000, 0.5000])
        """
        low, high = (-maxnorm,) * 3 + (-0.75,), (maxnorm,) * 3 + (0.75,)
        return cls(low, high, (maxnorm,) * 3 + (1.0,), (0, 1, 2, 6), 7, dead_zone=(0.0, 0.0, 0.0, 0.25))

    def clip(self, planned: Tensor) -> tuple[Tensor, Tensor]:
        """Planned numbers (..., n) within the bounds, and how many were not, as a tensor on the device."""
        clipped = planned.clamp(planned.new_tensor(self.low), planned.new_tensor(self.high))
        return clipped, (clipped != planned).sum()

    def expand(self, planned: Tensor) -> Tensor:
        """Whole actions (..., size) from planned numbers (..., n)."""
        action = planned.new_zeros(*planned.shape[:-1], self.size)
        action[..., list(self.planned)] = planned
        return action

    def settle(self, planned: Tensor) -> Tensor:
        """Planned numbers with those inside their dead zone set to 0."""
        zone = planned.new_tensor(self.dead_zone or (0.0,) * len(self.low))
        return torch.where(planned.abs() < zone, torch.zeros_like(planned), planned)
