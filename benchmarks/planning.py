"""One decision of the planner against the published form, and cached against recomputed rollouts, in interleaved rounds.

    python benchmarks/planning.py [--rounds N] [--json FILE] [CASE ...]

Run it from the root of the source tree: the published form (`tests/planning/published.py`) lives with the tests. Both plan
with the same weights, candidates and seed. The published form recomputes every frame at every step under a dense mask, turns
queries and keys elementwise, and composes poses sample by sample on the host.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from integrations.official.vjepa2 import VisionTransformerPredictorAC as PublishedPredictor
from jepa_kernels.models import VisionTransformerPredictorAC, normalize_tokens
from jepa_kernels.planning import ActionSpace, CEMConfig, LatentRollout, cem, compose_pose
from planning import published


@dataclass(frozen=True)
class Case:
    """Sizes of a predictor and of the search; `side` is the grid's, in patches."""

    width: int
    depth: int
    heads: int
    side: int
    samples: int
    horizon: int
    iterations: int = 4
    embed_dim: int = 256


CASES = {
    "small-h4": Case(256, 4, 4, side=6, samples=16, horizon=4),
    "small-h2": Case(256, 4, 4, side=6, samples=32, horizon=2),
    "small-h1": Case(256, 4, 4, side=6, samples=64, horizon=1),
    "tiny-h4": Case(64, 3, 2, side=4, samples=64, horizon=4, embed_dim=64),
    "vjepa2-ac-h2": Case(1024, 24, 16, side=16, samples=2, horizon=2, iterations=1, embed_dim=1408),
}


class Setting:
    """Both predictors with one set of weights, what is seen, and the goal."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "img_size": case.side * 16,
            "embed_dim": case.embed_dim,
            "predictor_embed_dim": case.width,
            "depth": case.depth,
            "num_heads": case.heads,
        }
        self.theirs = PublishedPredictor(**sizes, num_frames=2 * case.horizon + 2).eval()
        # Untrained weights hardly react to an action: make it count, so that candidates differ.
        self.theirs.action_encoder.weight.data.mul_(30.0)
        self.ours = VisionTransformerPredictorAC(**sizes).eval()
        self.ours.load_state_dict(self.theirs.state_dict())
        self.frame, self.goal = (normalize_tokens(torch.randn(1, case.side**2, case.embed_dim)) for _ in range(2))
        self.pose = torch.tensor([[0.3, 0.0, 0.4, 0.1, -0.2, 0.3, 0.5]])
        # topk 2 at least: the spread needs two.
        self.config = CEMConfig(case.samples, case.iterations, case.horizon, topk=max(2, case.samples // 8))
        # Kept between calls, as between the iterations of a search: its buffers are allocated once.
        self.rollout = LatentRollout(self.ours, self.frame, self.pose[None], next_state=compose_pose)
        self.actions = 0.05 * torch.randn(case.samples, case.horizon, 7)

    def ours_plans(self) -> tuple[Tensor, list[list[int]]]:
        rollout = LatentRollout(self.ours, self.frame, self.pose[None], next_state=compose_pose)
        plan = cem(
            lambda actions: (rollout(actions)[:, -1] - self.goal).abs().flatten(1).mean(1),
            ActionSpace.end_effector(0.05),
            self.config,
            generator=torch.Generator().manual_seed(0),
        )
        return plan.actions, plan.elites

    def published_plans(self) -> tuple[Tensor, list[list[int]]]:
        generator = torch.Generator().manual_seed(0)
        plan = published.cem(self.theirs, self.frame, self.pose, self.goal, self.config, generator=generator)
        return plan.actions, plan.elites

    def cached(self) -> Tensor:
        return self.rollout(self.actions)

    @torch.no_grad()
    def recomputed(self) -> Tensor:
        """All frames at every step, on the same operators: what the cache alone saves."""
        samples, horizon, _ = self.actions.shape
        patches = self.frame.shape[1]
        z, poses = self.frame.expand(samples, -1, -1), self.pose.expand(samples, -1)[:, None]
        for step in range(horizon):
            predicted = self.ours(z, self.actions[:, : step + 1], poses)[:, -patches:]
            z = torch.cat([z, normalize_tokens(predicted)], 1)
            poses = torch.cat([poses, compose_pose(poses[:, -1], self.actions[:, step])[:, None]], 1)
        return z[:, patches:].unflatten(1, (horizon, patches))


def interleaved(rounds: int, *calls: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call in every round, after one untimed round."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return times


def compare(name: str, slow: list[float], fast: list[float]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "name": name,
        "slow_ms": 1e3 * statistics.median(slow),
        "fast_ms": 1e3 * statistics.median(fast),
        "speed_up": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    setting = Setting(CASES[name])
    (actions, elites), (their_actions, their_elites) = setting.ours_plans(), setting.published_plans()
    plans = compare(f"{name} decision", *interleaved(rounds, setting.published_plans, setting.ours_plans))
    plans["same_elites"] = [sorted(step) for step in elites] == [sorted(step) for step in their_elites]
    plans["largest_difference"] = float((actions - their_actions).abs().max())
    rolls = compare(f"{name} rollout", *interleaved(rounds, setting.recomputed, setting.cached))
    rolls["largest_difference"] = float((setting.cached() - setting.recomputed()).abs().max())
    return [plans, rolls]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all but the last")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    results = []
    for name in options.cases or list(CASES)[:-1]:
        for result in measure(name, options.rounds):
            results.append(result)
            spread = f"{result['speed_up']:.2f}x [{result['lowest']:.2f}, {result['highest']:.2f}]"
            exact = f"differ by {result['largest_difference']:.1e} at most"
            exact += "" if "same_elites" not in result else f", same elites: {result['same_elites']}"
            times = f"{result['slow_ms']:9.1f} ms -> {result['fast_ms']:9.1f} ms"
            print(f"{result['name']:24} {times}  {spread}  {exact}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
