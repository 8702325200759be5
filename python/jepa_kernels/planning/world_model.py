"""A world model: an encoder of images, a predictor of what actions do to them, and planning towards a goal image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.ac_predictor import VisionTransformerPredictorAC
from ..models.ac_training import normalize_tokens
from ..models.vision_transformer import VisionTransformer
from .actions import ActionSpace
from .cem import CEMConfig, Plan, cem
from .mppi import MPPIConfig, mppi
from .poses import POSE_SIZE, compose_pose
from .rollout import LatentRollout, NextState

FORMAT = "jepa_kernels world model 1"


class WorldModel(nn.Module):
    """Plans actions that lead from what is seen to what a goal image shows, comparing in representation space alone.

    Formula: with h the encoder's tokens after `normalize_tokens` and d_t = mean |z_t - h(goal)| over tokens and channels, z_t
    what the predictor expects after action t, the cost of a candidate is d_H, as published, plus `hurry` times the mean of
    d_1..d_H. Without hurry a planner that looks further than the goal is away has no reason to set out now, and at every
    step none again.

    Shapes: images are uint8 (H, W, C) or (B, H, W, C), of the size that the encoder was built for. A clip encoder sees each
    image twice, as V-JEPA 2-AC does.

    State: with `poses=True` (7 numbers, V-JEPA 2-AC) states follow `compose_pose`; otherwise they stay as they are, which is
    right for worlds known by their pixels alone.

    Raises:
        ValueError: encoder, predictor and action space that do not fit each other; images of another size.

    Source: V-JEPA 2 (Assran et al., 2025).

    Example:
        >>> world = build_world_model(WorldConfig.tiny())
        >>> frame = torch.zeros(32, 32, 3, dtype=torch.uint8)
        >>> plan = world.plan(frame, frame, CEMConfig(samples=8, iterations=2, topk=2))
        >>> plan.actions.shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        predictor: VisionTransformerPredictorAC,
        space: ActionSpace,
        *,
        poses: bool = False,
        action_scale: float = 1.0,
        hurry: float = 0.0,
    ) -> None:
        super().__init__()
        if encoder.embed_dim != predictor.embed_dim or space.size != predictor.action_embed_dim:
            raise ValueError(
                f"the encoder has width {encoder.embed_dim} and actions {space.size} numbers, the predictor was built for "
                f"{predictor.embed_dim} and {predictor.action_embed_dim}"
            )
        if poses and (space.size != POSE_SIZE or action_scale != 1.0):
            raise ValueError(
                f"poses and their actions have {POSE_SIZE} numbers, and the scale 1; the action space has {space.size} numbers, "
                f"the scale is {action_scale}"
            )
        if not 0.0 <= hurry < float("inf"):
            raise ValueError(f"hurry must be finite and at least 0; got {hurry}")
        self.encoder, self.predictor, self.space = encoder, predictor, space
        self.poses, self.action_scale, self.hurry = poses, action_scale, hurry

    @property
    def device(self) -> torch.device:
        return next(self.predictor.parameters()).device

    def encode(self, images: Tensor) -> Tensor:
        """Normalised tokens (B, P, D) float32 of uint8 images (H, W, C) or (B, H, W, C).

        Raises:
            ValueError: images of another dtype, shape or size.
        """
        images = images[None] if images.ndim == 3 else images
        wanted = (self.encoder.img_height, self.encoder.img_width, self.encoder.in_chans)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"an image must be uint8 {wanted}, the size that this world model was trained on; got {images.dtype} "
                f"{tuple(images.shape[1:])}. Resize it (jepa_kernels.data.read_image takes a size)"
            )
        pixels = images.permute(0, 3, 1, 2).to(self.device)
        if self.encoder.is_video:
            pixels = pixels.unsqueeze(2).expand(-1, -1, self.encoder.tubelet_size, -1, -1)
        return normalize_tokens(self.encoder(pixels))

    @torch.no_grad()
    def rollout(
        self,
        observed: Tensor,
        state: Tensor | None = None,
        past_actions: Tensor | None = None,
        *,
        batch_size: int | None = None,
    ) -> LatentRollout:
        """The rollout from observed images, oldest first: (T, H, W, C), or one (H, W, C).

        `state` is (T, A), zeros without it; `past_actions` (T - 1, A), those between the images, in the world's own unit.
        """
        tokens = self.encode(observed).flatten(0, 1)[None]
        frames = tokens.shape[1] // self.predictor.patches_per_frame
        states = tokens.new_zeros(frames, self.space.size) if state is None else state.to(tokens)
        past = None if past_actions is None or frames == 1 else (past_actions.to(tokens) * self.action_scale)[None]
        follow: NextState | None = compose_pose if self.poses else None
        return LatentRollout(self.predictor, tokens, states[None], past, next_state=follow, batch_size=batch_size)

    @torch.no_grad()
    def plan(
        self,
        observed: Tensor,
        goal: Tensor,
        config: CEMConfig | MPPIConfig | None = None,
        *,
        state: Tensor | None = None,
        past_actions: Tensor | None = None,
        mean: Tensor | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> Plan:
        """Actions towards a goal image: CEM, or MPPI where `config` is an `MPPIConfig`.

        `observed`, `state` and `past_actions` as in `rollout`; `mean` (horizon, planned numbers) is where the search begins,
        such as the rest of the last plan; `batch_size` bounds the candidates in memory at a time.

        Raises:
            ValueError: images of another size.
            PlanningError: no candidate had a finite cost.
        """
        target = self.encode(goal)  # [1, P, D]
        rollout = self.rollout(observed, state, past_actions, batch_size=batch_size)

        def cost(actions: Tensor) -> Tensor:
            frames = rollout(actions * self.action_scale)  # [S, H, P, D]
            distances = (frames - target[:, None]).abs().flatten(2).mean(2)  # [S, H]
            return distances[:, -1] + self.hurry * distances.mean(1)

        search: Any = mppi if isinstance(config, MPPIConfig) else cem
        return search(cost, self.space, config, generator=generator, mean=mean, device=self.device)


class WorldConfig(dict[str, Any]):
    """What `build_world_model` needs, in plain values: keyword arguments of `encoder`, `predictor`, `space` and `world`."""

    @classmethod
    def tiny(cls, patch_size: int = 16) -> WorldConfig:
        """A world of 32 x 32 pixels and two planned numbers within 0.12, for a CPU."""
        size = {"img_size": 32, "patch_size": patch_size, "embed_dim": 64, "num_heads": 2}
        low_high = {"low": [-0.12, -0.12], "high": [0.12, 0.12]}
        return cls(
            encoder={**size, "depth": 2},
            predictor={**size, "predictor_embed_dim": 64, "depth": 3, "action_embed_dim": 2},
            space=low_high,
            world={"action_scale": 10.0},
        )


def build_world_model(config: dict[str, Any]) -> WorldModel:
    """A world model with random weights, from torch's global generator.

    `config` has `encoder` (arguments of `models.VisionTransformer`), `predictor` (of `models.VisionTransformerPredictorAC`),
    `space` ({"low", "high"} of `ActionSpace.box`, or {"maxnorm"} of `ActionSpace.end_effector`) and `world` (the rest of
    `WorldModel`'s).

    Raises:
        ValueError: an entry is missing, and what the parts refuse.
    """
    missing = {"encoder", "predictor", "space", "world"} - config.keys()
    if missing:
        raise ValueError(f"the configuration of a world model lacks {', '.join(sorted(missing))}")
    space = config["space"]
    chosen = ActionSpace.end_effector(**space) if "maxnorm" in space else ActionSpace.box(**space)
    return WorldModel(
        VisionTransformer(**config["encoder"]), VisionTransformerPredictorAC(**config["predictor"]), chosen, **config["world"]
    )


def save_world_model(path: str | Path, world: WorldModel, config: dict[str, Any]) -> None:
    """Writes the weights and the configuration that `build_world_model` takes."""
    torch.save({"format": FORMAT, "config": dict(config), "state": world.state_dict()}, path)


def load_world_model(path: str | Path, device: torch.device | str = "cpu") -> WorldModel:
    """A world model that `save_world_model` wrote, in evaluation mode. Reads weights alone, runs no code of the file.

    Raises:
        ValueError: the file is missing, or no world model.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file; give a checkpoint of save_world_model")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for what is no checkpoint
        raise ValueError(f"{path} is no checkpoint that torch can read: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} is no world model; write one with save_world_model (examples/plan_point_walls.py does)")
    world = build_world_model(found["config"])
    world.load_state_dict(found["state"])
    return world.eval().to(device)
