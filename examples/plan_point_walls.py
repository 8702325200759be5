"""Train a small world model on random actions, then let it plan its way to goal images.

    python examples/plan_point_walls.py --checkpoint runs/point_walls.pt --json runs/point_walls.json

A disc moves in a square with a wall (`jepa_kernels.envs.PointWalls`); the model sees 32 x 32 pixels and nothing else: no
position, no reward, no goal while it trains. Encoder and action-conditioned predictor are trained together on episodes of
random actions: V-JEPA 2-AC's teacher-forcing and rollout losses, and a linear map that tells the action from two
neighbouring frames. Without the map all representations would shrink to one, which is easy to predict; with it what remains
is what actions move, laid out so that distances in representation space grow with distances in the world. A frame is one
token here. Then CEM plans towards a goal image, the cost being the distance of representations alone, and plans again after
every step. Random actions on the same episodes are the yardstick; going straight, which knows both positions and not the
wall, shows how many episodes need a way around.

Runs on a CPU in a few minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa_kernels.envs import PointWalls
from jepa_kernels.models import ac_losses
from jepa_kernels.planning import CEMConfig, WorldConfig, WorldModel, build_world_model, save_world_model

FRAMES = 8  # of a training clip
TRAINING_SEED, EVALUATION_SEED = 1_000_000, 0  # of the first episode; the others follow
# Eight steps see across the square. Without hurry a planner that sees further than its goal puts off setting out.
PLANNER = CEMConfig(samples=64, iterations=5, horizon=8, topk=8)
HURRY = 0.3


def collect(episodes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frames (E, FRAMES, H, W, 3) uint8 and random actions (E, FRAMES - 1, 2); half of the actions repeat the episode's first."""
    rng = np.random.default_rng(seed)
    env = PointWalls()
    frames = np.empty((episodes, FRAMES, env.size, env.size, 3), dtype=np.uint8)
    actions = np.empty((episodes, FRAMES - 1, 2), dtype=np.float32)
    for episode in range(episodes):
        frames[episode, 0], _ = env.reset(seed=TRAINING_SEED + episode)
        for step in range(FRAMES - 1):
            repeat = step > 0 and rng.random() < 0.5
            actions[episode, step] = actions[episode, 0] if repeat else rng.uniform(env.action_low, env.action_high)
            frames[episode, step + 1] = env.step(actions[episode, step])[0]
    return torch.from_numpy(frames), torch.from_numpy(actions)


def train(world: WorldModel, frames: Tensor, actions: Tensor, steps: int, batch: int = 32) -> None:
    """Encoder and predictor together, by AdamW with a linearly falling rate."""
    patches, width = world.predictor.patches_per_frame, world.predictor.embed_dim
    tell_action = nn.Linear(width, world.space.size)
    trained = [p for p in [*world.parameters(), *tell_action.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-4)
    states = torch.zeros(batch, FRAMES, world.space.size)
    began = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1.0 - step / steps)
        chosen = torch.randint(len(frames), (batch,))
        acted = actions[chosen] * world.action_scale
        tokens = world.encode(frames[chosen].flatten(0, 1))  # [B * T, P, D]
        losses = ac_losses(
            world.predictor, tokens.view(batch, FRAMES * patches, width), acted, states, auto_steps=4, train_targets=True
        )
        clips = tokens.view(batch, FRAMES, patches, width)
        told = nn.functional.mse_loss(tell_action(clips[:, 1:] - clips[:, :-1]), acted[:, :, None].expand(-1, -1, patches, -1))
        (losses.loss + told).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps - 1:
            shown = f"teacher forcing {losses.teacher_forcing:.3f}, rollout {losses.rollout:.3f}"
            print(f"step {step:5d}  {time.perf_counter() - began:5.0f} s  {shown}, action {told:.3f}", flush=True)


def planned(world: WorldModel, config: CEMConfig, seed: int) -> Callable[..., Any]:
    """A policy that plans anew at every step, from where the last plan left off."""
    generator = torch.Generator().manual_seed(seed)
    rest: Tensor | None = None

    def act(observation: np.ndarray, info: dict[str, Any], goal_image: np.ndarray) -> np.ndarray:
        nonlocal rest
        seen, goal = torch.from_numpy(observation), torch.from_numpy(goal_image)
        plan = world.plan(seen, goal, config, generator=generator, mean=rest)
        rest = torch.cat([plan.actions[1:], torch.zeros(1, world.space.size)])
        return plan.actions[0].numpy()

    return act


def at_random(env: PointWalls, seed: int) -> Callable[..., Any]:
    rng = np.random.default_rng(seed)
    return lambda observation, info, goal_image: rng.uniform(env.action_low, env.action_high)


def straight(env: PointWalls) -> Callable[..., Any]:
    return lambda observation, info, goal_image: np.clip(info["goal"] - info["position"], env.action_low, env.action_high)


def evaluate(episodes: int, policy: Callable[[PointWalls, int], Callable[..., Any]]) -> dict[str, float]:
    """Share of episodes that reach the goal, their mean steps, and seconds a decision."""
    env = PointWalls()
    reached, steps, decisions = 0, 0, 0
    began = time.perf_counter()
    for episode in range(episodes):
        observation, info = env.reset(seed=EVALUATION_SEED + episode)
        goal_image, act, over = info["goal_image"], policy(env, episode), False
        while not over:
            observation, _, terminated, truncated, info = env.step(act(observation, info, goal_image))
            over = terminated or truncated
        reached += terminated
        steps += env.steps if terminated else 0
        decisions += env.steps
    seconds = (time.perf_counter() - began) / decisions
    return {"success": reached / episodes, "steps": steps / max(reached, 1), "seconds_per_decision": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1600, help="training steps (default 1600)")
    parser.add_argument("--clips", type=int, default=6000, help="random episodes to train on (default 6000)")
    parser.add_argument("--episodes", type=int, default=50, help="episodes to evaluate (default 50)")
    parser.add_argument("--samples", type=int, default=64, help="candidates an iteration of the planner (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="where to write the world model, for `jepa-kernels plan`")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()

    planner = replace(PLANNER, samples=options.samples)
    torch.manual_seed(options.seed)
    config = WorldConfig.tiny(patch_size=32)
    config["world"]["hurry"] = HURRY
    world = build_world_model(config)
    began = time.perf_counter()
    frames, actions = collect(options.clips, options.seed)
    train(world, frames, actions, options.steps)
    trained_s = time.perf_counter() - began
    if options.checkpoint is not None:
        options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        save_world_model(options.checkpoint, world, config)
    world.eval()
    results = {
        "planned": evaluate(options.episodes, lambda env, seed: planned(world, planner, seed)),
        "random": evaluate(options.episodes, at_random),
        "straight": evaluate(options.episodes, lambda env, seed: straight(env)),
    }
    print(f"trained in {trained_s:.0f} s; {options.episodes} episodes of at most {PointWalls().max_episode_steps} steps")
    for name, result in results.items():
        took = f"{result['steps']:.1f} steps, {1e3 * result['seconds_per_decision']:.1f} ms a decision"
        print(f"{name:9} reached {100 * result['success']:.0f} % in {took}")
    if options.json is not None:
        settings = {"steps": options.steps, "clips": options.clips, "episodes": options.episodes, "seed": options.seed}
        options.json.write_text(json.dumps({**settings, "training_s": trained_s, **results}, indent=1))


if __name__ == "__main__":
    main()
