"""One whole I-JEPA training step: our models on each backend, against the eager model in the official form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import eager_ijepa as eager
from .. import work as formulas
from ..correctness import Tolerance
from ..providers import kernel_providers
from .base import Case, Provider, Setting, Work
from .train_step import FLOOR, OPERATORS, losses, run

MOMENTUM = 0.996


@dataclass(frozen=True)
class Shape:
    """A training step: encoder of a named size cut to `depth` blocks, images, and the predictor."""

    encoder: str
    depth: int
    batch: int
    size: int
    predictor_dim: int
    predictor_depth: int
    predictor_heads: int
    patch: int = 16

    @property
    def grid(self) -> tuple[int, int]:
        return self.size // self.patch, self.size // self.patch


@dataclass(frozen=True)
class StepInputs:
    """uint8 images (B, H, W, 3), the masks, and the weights that every provider starts from."""

    images: Tensor
    masks_enc: list[Tensor]
    masks_pred: list[Tensor]
    state: dict[str, Tensor]
    config: eager.EagerConfig
    shape: Shape
    dtype: str

    @property
    def autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.dtype == "bf16" else None


def _build(shape: Shape, seed: int) -> Any:
    from ... import models

    return models.build_ijepa(
        shape.encoder,
        img_size=shape.size,
        patch_size=shape.patch,
        pred_depth=shape.predictor_depth,
        pred_embed_dim=shape.predictor_dim,
        pred_num_heads=shape.predictor_heads,
        encoder={"depth": shape.depth},
        seed=seed,
    )


def _inputs(shape: Shape, dtype: str, setting: Setting) -> StepInputs:
    from ... import masks, models

    size = models.encoder_size(shape.encoder)
    context, target = masks.MultiBlockMask2D(shape.grid, generator=setting.generator())(shape.batch)
    config = eager.EagerConfig(
        dim=size.embed_dim,
        depth=shape.depth,
        heads=size.num_heads,
        grid=shape.grid,
        patch=shape.patch,
        predictor_dim=shape.predictor_dim,
        predictor_depth=shape.predictor_depth,
        predictor_heads=shape.predictor_heads,
        mlp_ratio=size.mlp_ratio,
    )
    device = setting.device
    return StepInputs(
        images=setting.clip().cut(shape.batch, 1, shape.size)[:, 0].to(device),
        masks_enc=[m.to(device) for m in context],
        masks_pred=[m.to(device) for m in target],
        state={k: v.detach().clone() for k, v in _build(shape, setting.seed).state_dict().items()},
        config=config,
        shape=shape,
        dtype=dtype,
    )


def _work(inputs: StepInputs) -> Work:
    """Matrix products of blocks, patch embeddings and the predictor's ends; bytes of the optimiser and the EMA on the weights."""
    shape, config = inputs.shape, inputs.config
    batch, tokens, patch_values = shape.batch, config.tokens, 3 * shape.patch**2
    flops: float = formulas.patch_embed_flops(batch * tokens, patch_values, config.dim)
    flops += formulas.transformer_flops(
        batch * tokens, batch * tokens**2, config.dim, config.depth, mlp_ratio=config.mlp_ratio
    )
    for context in inputs.masks_enc:
        kept = context.shape[1]
        flops += 2 * formulas.patch_embed_flops(batch * kept, patch_values, config.dim)
        flops += formulas.transformer_flops(
            batch * kept, batch * kept**2, config.dim, config.depth, mlp_ratio=config.mlp_ratio, backward=True
        )
        flops += 3 * 2 * batch * kept * config.dim * config.predictor_dim  # into the predictor
        for target in inputs.masks_pred:
            both = kept + target.shape[1]
            flops += formulas.transformer_flops(
                batch * both, batch * both**2, config.predictor_dim, config.predictor_depth, backward=True
            )
            flops += 3 * 2 * batch * target.shape[1] * config.dim * config.predictor_dim  # out of it
    fixed = sum(v.numel() for k, v in inputs.state.items() if k.endswith("pos_embed"))
    whole = sum(v.numel() for v in inputs.state.values())
    encoder = sum(v.numel() for k, v in inputs.state.items() if k.startswith("encoder."))
    return Work(flops, 28 * (whole - encoder - fixed) + formulas.ema_bytes(encoder), batch, batch * tokens)


def _kernel_setup(inputs: StepInputs) -> Callable[[], Tensor]:
    from ... import models

    model = _build(inputs.shape, 0)
    model.load_state_dict(inputs.state)
    model.to(inputs.images.device)
    optimizer = models.make_adamw_ema(model, shadow_dtype=inputs.autocast, momentum=MOMENTUM)

    def step() -> Tensor:
        loss, _ = models.train_step(
            model,
            inputs.images,
            inputs.masks_enc,
            inputs.masks_pred,
            optimizer,
            momentum=MOMENTUM,
            autocast_dtype=inputs.autocast,
        )
        return loss

    return step


def _eager_setup(
    inputs: StepInputs, *, double: bool = False, fused: bool = False, compiled: bool = False
) -> Callable[[], Tensor]:
    from ...models import configs

    model = eager.EagerIJEPA(inputs.config)
    model.load_state_dict(inputs.state)
    model.to(inputs.images.device, torch.float64 if double else torch.float32)
    if compiled:
        model.compile(dynamic=False)
    return partial(
        eager.train_step,
        model,
        inputs.images,
        inputs.masks_enc,
        inputs.masks_pred,
        model.make_optimizer(configs.LEARNING_RATE, configs.WEIGHT_DECAY, fused=fused),
        mean=torch.tensor(configs.PIXEL_MEAN, dtype=torch.float64, device=inputs.images.device),
        std=torch.tensor(configs.PIXEL_STD, dtype=torch.float64, device=inputs.images.device),
        momentum=MOMENTUM,
        autocast_dtype=None if double else inputs.autocast,
    )


def _eager_losses(inputs: StepInputs, *, double: bool = False) -> list[Tensor]:
    step = _eager_setup(inputs, double=double)
    return losses(step, step())


def _providers(compiled: bool, device: torch.device) -> list[Provider]:
    def official(name: str, about: str, *, fused: bool = False, compiled: bool = False) -> Provider:
        setup = partial(_eager_setup, fused=fused, compiled=compiled)
        return Provider(name, run, setup, outputs=losses, about=about)

    found = [
        *kernel_providers(OPERATORS, device, run, setup=_kernel_setup, outputs=losses),
        official("torch-eager", "eager, in the official form"),
        official("torch-eager-fused", "the same, AdamW(fused=True)", fused=True),
    ]
    if compiled:
        found.append(official("torch-compile", "model compiled, AdamW(fused=True)", fused=True, compiled=True))
    return found


def make_case(name: str, shape: Shape, dtype: str, tags: set[str]) -> Case:
    """One train-step case; the name gains its batch. Compiling takes longer than a quick run has."""
    return Case(
        operator="train_step",
        name=f"{name}-b{shape.batch}",
        dtype=dtype,
        shape=dict(vars(shape)),
        make_inputs=partial(_inputs, shape, dtype),
        providers=partial(_providers, "quick" not in tags),
        work=_work,
        reference=partial(_eager_losses, double=True),
        low_precision=_eager_losses,
        peer="torch-eager",
        tags=frozenset(tags),
        tolerance=Tolerance(floor=FLOOR[dtype]),
    )


def cases() -> list[Case]:
    """ViT-S and ViT-B at 224 x 224."""
    small = Shape("vit_small", 12, 4, 224, predictor_dim=384, predictor_depth=6, predictor_heads=12)
    base = Shape("vit_base", 12, 4, 224, predictor_dim=384, predictor_depth=12, predictor_heads=12)
    return [
        make_case("ijepa-vits16-224", small, "bf16", {"full"}),
        make_case("ijepa-vits16-224", small, "fp32", {"full"}),
        make_case("ijepa-vitb16-224", base, "bf16", {"full"}),
    ]
