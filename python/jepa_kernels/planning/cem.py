"""The cross-entropy method over action sequences, with the published planner's parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .actions import ActionSpace

# Actions (S, H, A) -> costs (S,), lower is better.
Cost = Callable[[Tensor], Tensor]


class PlanningError(ValueError):
    """No candidate of any iteration had a finite cost."""


@dataclass(frozen=True)
class CEMConfig:
    """Parameters of `cem`; the defaults are those of the published code, `CEMConfig.paper()` those of the paper.

    Momentum is the weight of the old mean and spread; the gripper's is named apart, as in the published code, and applies to
    planned numbers with a dead zone.

    Raises:
        ValueError: counts below 1, fewer than two elites or more than samples, a momentum outside 0..1.

    >>> CEMConfig.paper().samples, CEMConfig.paper().horizon
    (800, 1)
    """

    samples: int = 400
    iterations: int = 10
    horizon: int = 2
    topk: int = 10
    momentum_mean: float = 0.15
    momentum_std: float = 0.15
    momentum_mean_gripper: float = 0.15
    momentum_std_gripper: float = 0.15

    def __post_init__(self) -> None:
        if min(self.samples, self.iterations, self.horizon) < 1:
            raise ValueError(f"samples, iterations and horizon must be at least 1; got {self}")
        if not 2 <= self.topk <= self.samples:
            raise ValueError(f"topk must be 2, for a spread, to samples = {self.samples}; got {self.topk}")
        momenta = (self.momentum_mean, self.momentum_std, self.momentum_mean_gripper, self.momentum_std_gripper)
        if not all(0.0 <= momentum < 1.0 for momentum in momenta):
            raise ValueError(f"momenta must lie in [0, 1); got {momenta}")

    @classmethod
    def paper(cls) -> CEMConfig:
        """800 samples, 10 iterations, horizon 1; with `ActionSpace.end_effector(0.075)`."""
        return cls(samples=800, horizon=1)


@dataclass
class Plan:
    """A chosen action sequence, and how it came about.

    `actions` (H, A) on the device. Per iteration: `best_costs`, the lowest cost, and `elites`, the chosen candidates' indices,
    best first. `dropped` counts candidates whose cost was not finite, `clipped` sampled numbers outside the bounds.
    """

    actions: Tensor
    best_costs: list[float]
    elites: list[list[int]] = field(default_factory=list)
    dropped: int = 0
    clipped: int = 0


@torch.no_grad()
def cem(
    cost: Cost,
    space: ActionSpace,
    config: CEMConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    mean: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Plan:
    """The action sequence that the cross-entropy method finds for a cost.

    Formula, per iteration: `samples` sequences from a normal distribution, independent in every number, clipped to the bounds;
    the `topk` with the lowest costs are the elites; mean <- momentum * mean + (1 - momentum) * mean of the elites, and the
    spread likewise from their unbiased standard deviation. It starts at `mean` (zeros) and `space.std`; the result is the last
    mean, dead zones applied.

    A candidate whose cost is not finite is never an elite, and is counted. With fewer than two finite candidates an iteration
    changes nothing.

    Shapes: `cost` takes (samples, horizon, space.size) and returns (samples,); `mean` (horizon, planned numbers).

    Raises:
        ValueError: a `mean` or costs of another shape.
        PlanningError: no candidate ever had a finite cost.

    Determinism: the draws depend on `generator` alone (torch's global one without it), and are those of the published form:
    (samples, planned numbers) for each step of each iteration in turn. On a GPU nothing waits for the device before the end.

    Source: V-JEPA 2 (Assran et al., 2025), `cem`.

    Example:
        >>> space = ActionSpace.box([-1.0, -1.0], [1.0, 1.0])
        >>> goal = torch.tensor([0.5, -0.25])
        >>> plan = cem(lambda actions: (actions.sum(1) - goal).abs().sum(1), space, generator=torch.Generator().manual_seed(0))
        >>> bool(((plan.actions.sum(0) - goal).abs() < 0.05).all())
        True
    """
    config = config or CEMConfig()
    mean, std = start(space, config.horizon, mean, device)
    gripper = torch.tensor([zone > 0 for zone in space.dead_zone or (0.0,) * len(space.low)], device=device)
    keep_mean = torch.where(gripper, config.momentum_mean_gripper, config.momentum_mean)
    keep_std = torch.where(gripper, config.momentum_std_gripper, config.momentum_std)
    history: list[tuple[Tensor, ...]] = []
    for _ in range(config.iterations):
        samples, clipped = draw(space, mean, std, config.samples, generator)
        costs, dropped = checked_costs(cost(space.expand(samples)), config.samples)
        values, elites = costs.topk(config.topk, largest=False)
        elite_mean, elite_std = _moments(samples[elites], values.isfinite())
        enough = values.isfinite().sum() >= 2
        mean = torch.where(enough, elite_mean * (1.0 - keep_mean) + mean * keep_mean, mean)
        std = torch.where(enough, elite_std * (1.0 - keep_std) + std * keep_std, std)
        history.append((values[0], elites, dropped, clipped))
    return finished(space, mean, history)


def start(space: ActionSpace, horizon: int, mean: Tensor | None, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The first mean and spread, (H, n) each."""
    std = torch.tensor(space.std, device=device).expand(horizon, -1)
    if mean is None:
        return torch.zeros_like(std), std
    if mean.shape != std.shape:
        raise ValueError(f"mean must be (horizon, planned numbers) = {tuple(std.shape)}; got {tuple(mean.shape)}")
    return mean.to(std), std


def draw(
    space: ActionSpace, mean: Tensor, std: Tensor, samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Candidates (S, H, n) within the bounds, and how many numbers were not."""
    shape = (samples, mean.shape[1])
    steps = [torch.randn(shape, generator=generator, device=mean.device) * std[h] + mean[h] for h in range(len(mean))]
    return space.clip(torch.stack(steps, dim=1))


def checked_costs(costs: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Costs with infinity for those that are not finite, and the count of these."""
    if costs.shape != (samples,):
        raise ValueError(f"cost must return one number a candidate, ({samples},); got {tuple(costs.shape)}")
    finite = costs.isfinite()
    return torch.where(finite, costs, torch.inf), (~finite).sum()


def finished(space: ActionSpace, mean: Tensor, history: list[tuple[Tensor, ...]]) -> Plan:
    """The plan; here the host waits for the device."""
    best = torch.stack([entry[0] for entry in history]).tolist()
    if not any(value < float("inf") for value in best):
        raise PlanningError("no candidate had a finite cost; look for NaN or infinity in the model's weights or its inputs")
    dropped, clipped = (int(torch.stack([entry[place] for entry in history]).sum()) for place in (2, 3))
    elites = [entry[1].tolist() for entry in history]
    return Plan(space.expand(space.settle(mean)), best, elites, dropped, clipped)


def _moments(elites: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation (H, n) of the elites (K, H, n) whose cost is finite."""
    weight = finite.to(elites.dtype)[:, None, None]
    count = weight.sum()
    mean = (elites * weight).sum(0) / count
    variance = ((elites - mean).square() * weight).sum(0) / (count - 1.0)
    return mean, variance.sqrt()
