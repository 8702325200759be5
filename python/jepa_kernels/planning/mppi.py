"""Model-predictive path integral control: every candidate counts, the better the more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .actions import ActionSpace
from .cem import Cost, Plan, checked_costs, draw, finished, start


@dataclass(frozen=True)
class MPPIConfig:
    """Parameters of `mppi`. `temperature` is in units of the standard deviation of an iteration's costs, so that it does not
    depend on their scale; the spread of the samples is multiplied by `decay` after each iteration.

    Raises:
        ValueError: counts below 1 (2 samples), a temperature or a decay that is not positive, a decay above 1.
    """

    samples: int = 400
    iterations: int = 10
    horizon: int = 2
    temperature: float = 0.2
    decay: float = 0.8

    def __post_init__(self) -> None:
        if min(self.iterations, self.horizon) < 1 or self.samples < 2:
            raise ValueError(f"iterations and horizon must be at least 1, samples at least 2; got {self}")
        if not 0.0 < self.temperature < float("inf") or not 0.0 < self.decay <= 1.0:
            raise ValueError(f"temperature must be positive and decay in (0, 1]; got {self.temperature} and {self.decay}")


@torch.no_grad()
def mppi(
    cost: Cost,
    space: ActionSpace,
    config: MPPIConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    mean: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Plan:
    """The action sequence that path-integral averaging finds for a cost.

    Formula, per iteration: `samples` sequences around the mean, clipped to the bounds; with c their costs and s the standard
    deviation of c, mean <- sum of w_i * sequence_i, w = softmax(-(c - min c) / (temperature * s)). It starts at `mean`
    (zeros) with spread `space.std`; the result is the last mean, dead zones applied.

    A candidate whose cost is not finite has weight 0, and is counted. `elites` of the plan holds the one best candidate.

    Shapes, errors and determinism: those of `cem`.

    Source: Williams et al., Model Predictive Path Integral Control (2017).

    Example:
        >>> space = ActionSpace.box([-1.0, -1.0], [1.0, 1.0])
        >>> goal = torch.tensor([0.5, -0.25])
        >>> plan = mppi(lambda actions: (actions.sum(1) - goal).abs().sum(1), space, generator=torch.Generator().manual_seed(0))
        >>> bool(((plan.actions.sum(0) - goal).abs() < 0.1).all())
        True
    """
    config = config or MPPIConfig()
    mean, std = start(space, config.horizon, mean, device)
    history: list[tuple[Tensor, ...]] = []
    for _ in range(config.iterations):
        samples, clipped = draw(space, mean, std, config.samples, generator)
        costs, dropped = checked_costs(cost(space.expand(samples)), config.samples)
        best, index = costs.min(dim=0, keepdim=True)
        weights = _weights(costs, best, config.temperature)
        averaged = (samples * weights[:, None, None]).sum(0)
        mean = torch.where(best.isfinite(), averaged, mean)
        std = std * config.decay
        history.append((best[0], index, dropped, clipped))
    return finished(space, mean, history)


def _weights(costs: Tensor, best: Tensor, temperature: float) -> Tensor:
    """Weights (S,) that sum to 1; 0 for infinite costs."""
    finite = costs.isfinite()
    excess = torch.where(finite, costs - best, 0.0)
    count = finite.sum()
    spread = ((excess - excess.sum() / count).square() * finite).sum().div(count).sqrt()
    scores = -excess / (temperature * spread).clamp_min(torch.finfo(costs.dtype).tiny)
    return torch.where(finite, scores, -torch.inf).softmax(dim=0)
