"""The command `jepa-kernels plan`: what a world model would do, in an environment or between two images."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.image import read_image
from ..envs import PointWalls
from .cem import CEMConfig, Plan
from .mppi import MPPIConfig
from .world_model import WorldModel, load_world_model

ENVIRONMENTS = {"point-walls": PointWalls}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("checkpoint", type=Path, help="a world model; examples/plan_point_walls.py trains and writes one")
    parser.add_argument("--env", choices=tuple(ENVIRONMENTS), help="act in this environment until its goal or its step limit")
    parser.add_argument("--image", type=Path, metavar="PATH", help="what is seen now, instead of --env: one decision")
    parser.add_argument("--goal", type=Path, metavar="PATH", help="goal image, of the size that the model was trained on")
    parser.add_argument("--planner", choices=("cem", "mppi"), default="cem")
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="candidates an iteration (default 64)")
    parser.add_argument("--iterations", type=int, default=4, metavar="N", help="iterations a decision (default 4)")
    parser.add_argument("--horizon", type=int, default=8, metavar="N", help="steps looked ahead (default 8)")
    parser.add_argument("--topk", type=int, default=8, metavar="N", help="elites of cem (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the episode and the candidates (default 0)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="print JSON")


@dataclass
class Decision:
    """One plan: its first action, the cost of its best candidate, the time it took, and what was dropped or clipped."""

    action: list[float]
    cost: float
    milliseconds: float
    dropped: int
    clipped: int


def run(options: argparse.Namespace) -> str:
    """The text to print.

    Raises:
        ValueError: options that do not fit each other, a file or an image that cannot be used, no GPU.
    """
    if (options.env is None) == (options.image is None) or (options.image is None) != (options.goal is None):
        raise ValueError("give --env, or --image and --goal")
    config = _config(options)
    world = load_world_model(options.checkpoint, _device(options.device))
    generator = torch.Generator(world.device).manual_seed(options.seed)
    if options.env is not None:
        found = _episode(world, ENVIRONMENTS[options.env](), config, generator, options.seed)
    else:
        seen, goal = (read_image(path, size=None) for path in (options.image, options.goal))
        plan, decision = _decide(world, seen, goal, config, generator, None)
        found = {"decisions": [vars(decision)], "actions": plan.actions.tolist()}
    found = {"planner": options.planner, "config": vars(config), **found}
    return json.dumps(found, indent=1) if options.json else _as_text(found)


def _config(options: argparse.Namespace) -> CEMConfig | MPPIConfig:
    shared = {"samples": options.samples, "iterations": options.iterations, "horizon": options.horizon}
    return MPPIConfig(**shared) if options.planner == "mppi" else CEMConfig(**shared, topk=options.topk)


def _device(name: str) -> torch.device:
    device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no GPU here; use --device cpu")
    return device


def _decide(
    world: WorldModel,
    seen: Tensor,
    goal: Tensor,
    config: CEMConfig | MPPIConfig,
    generator: torch.Generator,
    mean: Tensor | None,
) -> tuple[Plan, Decision]:
    began = time.perf_counter()
    plan = world.plan(seen, goal, config, generator=generator, mean=mean)  # ends with the plan's costs on the host
    spent = 1e3 * (time.perf_counter() - began)
    return plan, Decision(plan.actions[0].tolist(), plan.best_costs[-1], spent, plan.dropped, plan.clipped)


def _episode(
    world: WorldModel, env: PointWalls, config: CEMConfig | MPPIConfig, generator: torch.Generator, seed: int
) -> dict[str, Any]:
    observation, info = env.reset(seed=seed)
    goal, rest = torch.from_numpy(info["goal_image"]), None
    decisions, over = [], False
    while not over:
        plan, decision = _decide(world, torch.from_numpy(observation), goal, config, generator, rest)
        planned = plan.actions[:, list(world.space.planned)]
        rest = torch.cat([planned[1:], torch.zeros_like(planned[:1])])  # the next search begins where this one ended
        observation, _, terminated, truncated, info = env.step(decision.action)
        decisions.append({**vars(decision), "distance": info["distance"]})
        over = terminated or truncated
    return {"decisions": decisions, "reached": terminated, "steps": env.steps, "clipped_by_environment": env.clipped}


def _as_text(found: dict[str, Any]) -> str:
    lines = []
    for step, decision in enumerate(found["decisions"], start=1):
        action = ", ".join(f"{number:+.3f}" for number in decision["action"])
        line = f"{step:3d}  action ({action})  cost {decision['cost']:.4f}  {decision['milliseconds']:.0f} ms"
        line += f"  distance to the goal {decision['distance']:.3f}" if "distance" in decision else ""
        lines.append(line + (f"  {decision['dropped']} candidates dropped" if decision["dropped"] else ""))
    if "actions" in found:
        lines += [f"then ({', '.join(f'{number:+.3f}' for number in action)})" for action in found["actions"][1:]]
    else:
        lines.append(f"{'reached' if found['reached'] else 'did not reach'} the goal in {found['steps']} steps")
    return "\n".join(lines)
