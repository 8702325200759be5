"""From a configuration to the model, the mask sampler and the optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from ..masks import ForecastMask, Masks, MultiBlockMask2D, MultiBlockMask3D, RandomMask
from ..models import (
    Objective,
    build_dino,
    build_ijepa,
    build_lejepa,
    build_mae,
    build_vicreg,
    build_vjepa,
    build_vjepa2,
    build_vjepa21,
    channels_first,
    images_channels_first,
)
from .config import VIEW_FAMILIES, Config, ConfigError


def build_model(config: Config) -> Objective:
    """The model with random weights from `run.seed`.

    Raises:
        ConfigError: an unknown size, or sizes that do not divide.
    """
    model = config.model
    overrides = {"depth": model.encoder_depth, "embed_dim": model.encoder_width, "num_heads": model.encoder_heads}
    chosen: dict[str, Any] = {name: value for name, value in overrides.items() if value}
    shared: dict[str, Any] = {
        "img_size": model.img_size,
        "patch_size": model.patch_size,
        "use_activation_checkpointing": model.activation_checkpointing,
        "encoder": {**chosen, "normalization": model.normalization},
        "seed": config.run.seed,
    }
    try:
        if model.family in VIEW_FAMILIES:
            return _over_views(config, shared)
        return _over_masks(config, shared)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None


def _over_masks(config: Config, shared: dict[str, Any]) -> Objective:
    model = config.model
    shared |= {"pred_depth": model.pred_depth, "pred_embed_dim": model.pred_embed_dim}
    heads: dict[str, Any] = {"pred_num_heads": model.pred_num_heads} if model.pred_num_heads else {}
    clip: dict[str, Any] = {"num_frames": model.num_frames, "tubelet_size": model.tubelet_size}
    if model.family == "ijepa":
        return build_ijepa(model.encoder, **heads, **shared)
    if model.family == "vjepa":
        return build_vjepa(model.encoder, loss_exp=model.loss_exp, **heads, **clip, **shared)
    if model.family == "vjepa2":
        return build_vjepa2(model.encoder, loss_exp=model.loss_exp, **heads, **clip, **shared)
    if model.family == "vjepa21":
        return build_vjepa21(
            model.encoder, levels=config.head.levels or None, context_weight=config.head.context_weight,
            context_warmup_epochs=config.head.context_warmup_epochs, **heads, **clip, **shared,
        )  # fmt: skip
    return build_mae(model.encoder, normalize_patches=config.head.normalize_patches, **heads, **clip, **shared)


def _over_views(config: Config, shared: dict[str, Any]) -> Objective:
    model, head, crops = config.model, config.head, config.views.global_crops
    if model.family == "lejepa":
        return build_lejepa(
            model.encoder, hidden_dim=head.hidden_dim, proj_dim=head.out_dim, num_global=crops,
            sigreg_weight=head.sigreg_weight, num_slices=head.sigreg_slices, **shared,
        )  # fmt: skip
    if model.family == "vicreg":
        return build_vicreg(
            model.encoder, hidden_dim=head.hidden_dim, proj_dim=head.out_dim, weights=head.vicreg_weights, **shared
        )
    return build_dino(
        model.encoder, hidden_dim=head.hidden_dim, bottleneck=head.out_dim, prototypes=head.prototypes, num_global=crops,
        student_temperature=head.student_temperature, teacher_temperature=head.teacher_temperature,
        centre_momentum=head.centre_momentum, **shared,
    )  # fmt: skip


class NoMasks:
    """The sampler of objectives over views, which hide nothing."""

    def draw(self, step: int, generators: Sequence[torch.Generator]) -> tuple[Masks, Masks]:
        return [], []


Sampler: TypeAlias = MultiBlockMask2D | MultiBlockMask3D | ForecastMask | RandomMask | NoMasks


def build_sampler(config: Config) -> Sampler:
    """The mask sampler; a first draw tells at once what would fail in the middle of a run.

    Raises:
        ConfigError: masks that leave no context or cannot hold the budget.
    """
    masks, model = config.masks, config.model
    budget: Any = masks.budget or None
    try:
        sampler: Sampler
        if model.family in VIEW_FAMILIES:
            sampler = NoMasks()
        elif model.family in ("mae", "videomae"):
            sampler = RandomMask.from_clip(
                model.num_frames, model.img_size, model.patch_size, model.tubelet_size, masks.ratio
            )
        elif model.family == "ijepa":
            if budget is not None and len(budget) != 1:
                raise ConfigError(f"masks.budget: I-JEPA takes one pair [context, target]; got {len(budget)}")
            pair = None if budget is None else budget[0]
            sampler = MultiBlockMask2D.from_image(
                model.img_size, model.patch_size, masks.rectangles, keep=masks.keep, budget=pair
            )
        elif masks.forecasts:
            sampler = ForecastMask.from_clip(
                model.num_frames, model.img_size, model.patch_size, model.tubelet_size, masks.forecasts
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
