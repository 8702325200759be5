"""The published planner's form: every step recomputes all frames under a dense mask, the host composes poses one by one.

The predictor is the re-creation in `tests/integrations/official`; arguments are spelled as `jepa_kernels.planning` spells them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from integrations.official.vjepa2 import VisionTransformerPredictorAC
from jepa_kernels.planning import CEMConfig


def compute_new_pose(pose: Tensor, action: Tensor) -> Tensor:
    """(S, 7) and (S, 7), through numpy and scipy, sample by sample."""
    old, change = pose.cpu().numpy(), action.cpu().numpy()
    angles = []
    for start, delta in zip(old[:, 3:6], change[:, 3:6], strict=True):
        turned = Rotation.from_euler("xyz", delta).as_matrix() @ Rotation.from_euler("xyz", start).as_matrix()
        angles.append(Rotation.from_matrix(turned).as_euler("xyz"))
    gripper = np.clip(old[:, 6:] + change[:, 6:], 0, 1)
    new = np.concatenate([old[:, :3] + change[:, :3], np.stack(angles), gripper], -1)
    return torch.from_numpy(new).to(pose)


@dataclass
class Published:
    """The chosen actions (H, 7), and the elites of every iteration."""

    actions: Tensor
    elites: list[list[int]] = field(default_factory=list)


def roll_out(predictor: VisionTransformerPredictorAC, frames: Tensor, pose: Tensor, actions: Tensor) -> Tensor:
    """Tokens (S, H, P, D) after each of the actions (S, H, 7), from one frame (1, P, D) and pose (1, 7)."""
    samples, horizon, _ = actions.shape
    patches = frames.shape[1]
    z, poses = frames.repeat(samples, 1, 1), pose.repeat(samples, 1, 1)
    for step in range(horizon):
        predicted = predictor(z, actions[:, : step + 1], poses)[:, -patches:]
        z = torch.cat([z, functional.layer_norm(predicted, predicted.shape[-1:])], 1)
        poses = torch.cat([poses, compute_new_pose(poses[:, -1], actions[:, step])[:, None]], 1)
    return z[:, patches:].unflatten(1, (horizon, patches))


@torch.no_grad()
def cem(
    predictor: VisionTransformerPredictorAC,
    frame: Tensor,
    pose: Tensor,
    goal: Tensor,
    config: CEMConfig,
    maxnorm: float = 0.05,
    generator: torch.Generator | None = None,
) -> Published:
    """frame and goal (1, P, D), pose (1, 7)."""
    horizon, samples = config.horizon, config.samples
    mean = torch.zeros(horizon, 4)
    std = torch.cat([torch.full((horizon, 3), maxnorm), torch.ones(horizon, 1)], -1)
    found = Published(mean)
    for _ in range(config.iterations):
        drawn = []
        for step in range(horizon):
            sample = torch.randn(samples, 4, generator=generator) * std[step] + mean[step]
            xyz, gripper = sample[:, :3].clip(-maxnorm, maxnorm), sample[:, 3:].clip(-0.75, 0.75)
            drawn.append(torch.cat([xyz, torch.zeros(samples, 3), gripper], -1))
        actions = torch.stack(drawn, 1)
        last = roll_out(predictor, frame, pose, actions.to(frame.dtype))[:, -1]
        costs = (last.flatten(1) - goal.repeat(samples, 1, 1).flatten(1)).abs().mean(-1)
        elites = costs.topk(config.topk, largest=False).indices
        chosen = torch.cat([actions[elites][..., :3], actions[elites][..., 6:]], -1)
        mean = chosen.mean(0) * (1 - config.momentum_mean) + mean * config.momentum_mean
        std = chosen.std(0) * (1 - config.momentum_std) + std * config.momentum_std
        found.elites.append(elites.tolist())
    gripper = torch.where(mean[:, 3:].abs() < 0.25, 0.0, mean[:, 3:])
    found.actions = torch.cat([mean[:, :3], torch.zeros(horizon, 3), gripper], -1)
    return found
