"""From a configuration to the model, the mask sampler and the optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..masks import MultiBlockMask2D, MultiBlockMask3D
from ..models import build_ijepa, build_vjepa, build_vjepa2, channels_first, images_channels_first
from .config import Config, ConfigError


def build_model(config: Config) -> nn.Module:
    """The model with random weights from `run.seed`.

    Raises:
        ConfigError: an unknown size, or sizes that do not divide.
    """
    model = config.model
    overrides = {"depth": model.encoder_depth, "embed_dim": model.encoder_width, "num_heads": model.encoder_heads}
    shared: dict[str, Any] = {
        "img_size": model.img_size,
        "patch_size": model.patch_size,
        "pred_depth": model.pred_depth,
        "pred_embed_dim": model.pred_embed_dim,
        "use_activation_checkpointing": model.activation_checkpointing,
        "encoder": {name: value for name, value in overrides.items() if value},
        "seed": config.run.seed,
    }
    clip: dict[str, Any] = {"num_frames": model.num_frames, "tubelet_size": model.tubelet_size}
    try:
        if model.family == "ijepa":
            return build_ijepa(model.encoder, pred_num_heads=model.pred_num_heads or None, **shared)
        if model.family == "vjepa":
            return build_vjepa(
                model.encoder, pred_num_heads=model.pred_num_heads or None, loss_exp=model.loss_exp, **clip, **shared
            )
        if model.pred_num_heads:
            shared["pred_num_heads"] = model.pred_num_heads
        return build_vjepa2(model.encoder, **clip, **shared)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None


def build_sampler(config: Config) -> MultiBlockMask2D | MultiBlockMask3D:
    """The mask sampler; a first draw tells at once what would fail in the middle of a run.

    Raises:
        ConfigError: masks that leave no context or cannot hold the budget.
    """
    masks, model = config.masks, config.model
    budget: Any = masks.budget or None
    try:
        sampler: MultiBlockMask2D | MultiBlockMask3D
        if model.family == "ijepa":
            if budget is not None and len(budget) != 1:
                raise ConfigError(f"masks.budget: I-JEPA takes one pair [context, target]; got {len(budget)}")
            pair = None if budget is None else budget[0]
            sampler = MultiBlockMask2D.from_image(
                model.img_size, model.patch_size, masks.rectangles, keep=masks.keep, budget=pair
            )
        else:
            sampler = MultiBlockMask3D.from_clip(
                model.num_frames, model.img_size, model.patch_size, model.tubelet_size, masks.blocks,
                keep=masks.keep, budget=budget,
            )  # fmt: skip
        sampler.draw(0, [torch.Generator().manual_seed(0)])
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"masks: {error}") from None
    return sampler


def pixels_first(inputs: torch.Tensor) -> torch.Tensor:
    """Images or clips, channels last, as the encoders take them."""
    return images_channels_first(inputs) if inputs.ndim == 4 else channels_first(inputs)
