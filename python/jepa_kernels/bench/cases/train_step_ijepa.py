"""One whole I-JEPA training step: our models on each backend, against the eager model in the official form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import eager_ijepa as eager
from .. import work as formulas
from .base import Case, Setting, Work
from .training_steps import Family, StepInputs

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
    drawn = masks.MultiBlockMask2D(shape.grid, generator=setting.generator())(shape.batch)
    images = setting.clip().cut(shape.batch, 1, shape.size)[:, 0]
    return FAMILY.inputs(shape, dtype, setting, images, drawn, config)


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


FAMILY = Family(_build, eager.EagerIJEPA, eager.train_step, MOMENTUM)


def make_case(name: str, shape: Shape, dtype: str, tags: set[str]) -> Case:
    """One train-step case of I-JEPA; the name gains its batch."""
    return FAMILY.case(name, shape, dtype, tags, partial(_inputs, shape, dtype), _work)


def cases() -> list[Case]:
    """ViT-S and ViT-B at 224 x 224."""
    small = Shape("vit_small", 12, 4, 224, predictor_dim=384, predictor_depth=6, predictor_heads=12)
    base = Shape("vit_base", 12, 4, 224, predictor_dim=384, predictor_depth=12, predictor_heads=12)
    return [
        make_case("ijepa-vits16-224", small, "bf16", {"full"}),
        make_case("ijepa-vits16-224", small, "fp32", {"full"}),
        make_case("ijepa-vitb16-224", base, "bf16", {"full"}),
    ]
