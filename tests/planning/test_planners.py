"""CEM and MPPI: the published form's elites, costs that are not finite, bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from jepa_kernels.models import normalize_tokens
from jepa_kernels.planning import (
    ActionSpace,
    CEMConfig,
    LatentRollout,
    MPPIConfig,
    PlanningError,
    cem,
    compose_pose,
    mppi,
)

from . import published
from .conftest import pair_of_predictors

BOX = ActionSpace.box([-1.0, -1.0], [1.0, 1.0])
GOAL = torch.tensor([0.5, -0.25])
SMALL = {"samples": 64, "iterations": 8, "horizon": 2}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(actions: Tensor) -> Tensor:
    return (actions.sum(1) - GOAL).abs().sum(1)


def search(name: str, cost, **options):
    planner, config = (cem, CEMConfig(**SMALL)) if name == "cem" else (mppi, MPPIConfig(**SMALL))
    return planner(cost, BOX, config, generator=seeded(), **options)


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_elites_and_actions_are_those_of_the_published_form(horizon: int, seed: int) -> None:
    """In float64: late in the search candidates differ by less than float32 resolves, and which comes first is chance."""
    ours, theirs = (model.double() for model in pair_of_predictors())
    frame, goal = (normalize_tokens(torch.randn(1, 4, 24).double()) for _ in range(2))
    pose = torch.cat([torch.randn(1, 6), torch.rand(1, 1)], -1).double()
    config = CEMConfig(samples=48, iterations=4, horizon=horizon, topk=6)
    expected = published.cem(theirs, frame, pose, goal, config, generator=seeded(seed))
    rollout = LatentRollout(ours, frame, pose[None], next_state=compose_pose)
    found = cem(
        lambda actions: (rollout(actions.double())[:, -1] - goal).abs().flatten(1).mean(1),
        ActionSpace.end_effector(0.05),
        config,
        generator=seeded(seed),
    )
    assert [sorted(step) for step in found.elites] == [sorted(step) for step in expected.elites]
    torch.testing.assert_close(found.actions, expected.actions, rtol=0, atol=1e-6)


def test_published_parameters_are_the_defaults() -> None:
    code, paper = CEMConfig(), CEMConfig.paper()
    assert (code.samples, code.iterations, code.horizon, code.topk) == (400, 10, 2, 10)
    assert {code.momentum_mean, code.momentum_std, code.momentum_mean_gripper, code.momentum_std_gripper} == {0.15}
    assert (paper.samples, paper.iterations, paper.horizon) == (800, 10, 1)
    arm = ActionSpace.end_effector()
    assert arm.high == (0.05, 0.05, 0.05, 0.75) and arm.std[3] == 1.0 and arm.planned == (0, 1, 2, 6)


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_finds_the_minimum_and_repeats_itself(name: str) -> None:
    first, second = search(name, distance), search(name, distance)
    torch.testing.assert_close(first.actions.sum(0), GOAL, rtol=0, atol=0.1)
    assert torch.equal(first.actions, second.actions) and first.best_costs == second.best_costs
    assert first.best_costs[-1] < first.best_costs[0] and first.dropped == 0


@pytest.mark.parametrize("name", ["cem", "mppi"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_candidates_without_finite_cost_are_dropped_and_counted(name: str, bad: float) -> None:
    def cost(actions: Tensor) -> Tensor:
        costs = distance(actions)
        costs[::4] = bad
        return costs

    plan = search(name, cost)
    assert plan.dropped == 8 * 16
    assert all(index % 4 for step in plan.elites for index in step)
    torch.testing.assert_close(plan.actions.sum(0), GOAL, rtol=0, atol=0.15)


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_no_finite_cost_at_all_is_an_error(name: str) -> None:
    with pytest.raises(PlanningError, match="no candidate had a finite cost"):
        search(name, lambda actions: torch.full((64,), torch.nan))


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_an_iteration_without_finite_costs_changes_nothing(name: str) -> None:
    calls = iter(range(8))

    def cost(actions: Tensor) -> Tensor:
        costs = distance(actions)
        return costs if next(calls) != 3 else torch.full_like(costs, torch.nan)

    plan = search(name, cost)
    assert plan.dropped == 64 and plan.best_costs[3] == float("inf") and plan.actions.isfinite().all()


def test_few_finite_costs_leave_the_spread_sound() -> None:
    """Fewer finite candidates than elites: mean and deviation come from those that are left."""

    def cost(actions: Tensor) -> Tensor:
        costs = distance(actions)
        costs[3:] = torch.nan
        return costs

    plan = search("cem", cost)
    assert plan.dropped == 8 * 61 and plan.actions.isfinite().all()
    assert all(set(step[:3]) == {0, 1, 2} for step in plan.elites)


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_candidates_stay_within_bounds_and_clipping_is_counted(name: str) -> None:
    outside = []

    def cost(actions: Tensor) -> Tensor:
        outside.append(int((actions.abs() > 1.0).sum()))
        return -actions.sum((1, 2))  # the best is the corner

    plan = search(name, cost)
    assert sum(outside) == 0 and plan.clipped > 0
    assert (plan.actions > 0.8).all() and (plan.actions <= 1.0).all()


def test_search_begins_where_it_is_told() -> None:
    mean = torch.tensor([[0.4, -0.2], [0.1, -0.05]])
    seen = []

    def cost(actions: Tensor) -> Tensor:
        seen.append(actions.mean(0))
        return distance(actions)

    cem(cost, replace(BOX, std=(1e-3, 1e-3)), CEMConfig(samples=8, iterations=1, topk=2), generator=seeded(), mean=mean)
    torch.testing.assert_close(seen[0], mean, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CEMConfig(topk=1), "topk must be 2"),
        (lambda: CEMConfig(samples=5), "samples = 5; got 10"),
        (lambda: CEMConfig(iterations=0), "at least 1"),
        (lambda: CEMConfig(momentum_std=1.0), "momenta"),
        (lambda: MPPIConfig(temperature=0.0), "temperature"),
        (lambda: MPPIConfig(samples=1), "at least 2"),
        (lambda: ActionSpace.box([0.0], [0.0]), "low < high"),
        (lambda: ActionSpace((0.0,), (1.0,), (1.0,), (3,), 2), "places in 0..1"),
        (lambda: ActionSpace((0.0,), (1.0, 2.0), (1.0,), (0,), 2), "equally long"),
        (lambda: search("cem", distance, mean=torch.zeros(3, 2)), r"\(2, 2\); got \(3, 2\)"),
        (lambda: search("cem", lambda actions: torch.zeros(3)), "one number a candidate"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
