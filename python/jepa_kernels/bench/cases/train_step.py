"""One whole V-JEPA 2 training step: our models on each backend, against the eager model in the official form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from ...models.configs import MOMENTUM
from .. import eager_vjepa2 as eager
from .. import work as formulas
from .base import Case, Setting, Work
from .training_steps import Family, StepInputs


@dataclass(frozen=True)
class Shape:
    """A training step: encoder of a named size cut to `depth` blocks, clips, and the predictor."""

    encoder: str
    depth: int
    batch: int
    frames: int
    size: int
    predictor_dim: int
    predictor_depth: int
    predictor_heads: int
    patch: int = 16
    tubelet: int = 2

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.frames // self.tubelet, self.size // self.patch, self.size // self.patch


def _build(shape: Shape, seed: int) -> Any:
    from ... import models

    return models.build_vjepa2(
        shape.encoder,
        img_size=shape.size,
        num_frames=shape.frames,
        patch_size=shape.patch,
        tubelet_size=shape.tubelet,
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
        tubelet=shape.tubelet,
        predictor_dim=shape.predictor_dim,
        predictor_depth=shape.predictor_depth,
        predictor_heads=shape.predictor_heads,
        mlp_ratio=size.mlp_ratio,
    )
    drawn = masks.MultiBlockMask3D(shape.grid, generator=setting.generator())(shape.batch)
    clips = setting.clip().cut(shape.batch, shape.frames, shape.size)
    return FAMILY.inputs(shape, dtype, setting, clips, drawn, config)


def _work(inputs: StepInputs) -> Work:
    """Matrix products of blocks, patch embeddings and the predictor's ends; bytes of the optimiser and the EMA on the weights."""
    shape, config = inputs.shape, inputs.config
    frames, rows, columns = shape.grid
    tokens = frames * rows * columns
    batch = shape.batch
    patch_values = 3 * shape.tubelet * shape.patch**2
    flops: float = formulas.patch_embed_flops(batch * tokens, patch_values, config.dim)
    flops += formulas.transformer_flops(
        batch * tokens, batch * tokens**2, config.dim, config.depth, mlp_ratio=config.mlp_ratio
    )
    for context, target in zip(inputs.masks_enc, inputs.masks_pred, strict=True):
        kept, both = context.shape[1], context.shape[1] + target.shape[1]
        flops += 2 * formulas.patch_embed_flops(batch * kept, patch_values, config.dim)
        flops += formulas.transformer_flops(
            batch * kept, batch * kept**2, config.dim, config.depth, mlp_ratio=config.mlp_ratio, backward=True
        )
        flops += formulas.transformer_flops(
            batch * both, batch * both**2, config.predictor_dim, config.predictor_depth, backward=True
        )
        flops += 3 * 2 * batch * both * config.dim * config.predictor_dim  # context into, targets out of the predictor
    trained = sum(v.numel() for k, v in inputs.state.items() if not k.startswith("target_encoder."))
    encoder = sum(v.numel() for k, v in inputs.state.items() if k.startswith("encoder."))
    return Work(flops, 28 * trained + formulas.ema_bytes(encoder), batch, batch * tokens)


FAMILY = Family(_build, eager.EagerVJEPA2, eager.train_step, MOMENTUM)


def make_case(name: str, shape: Shape, dtype: str, tags: set[str]) -> Case:
    """One train-step case of V-JEPA 2; the name gains its batch."""
    return FAMILY.case(name, shape, dtype, tags, partial(_inputs, shape, dtype), _work)


def cases() -> list[Case]:
    """The train-step cases: two small ones, and ViT-B as far as two CPU cores reach."""
    tiny = Shape("vit_tiny", 6, 2, 8, 128, predictor_dim=192, predictor_depth=3, predictor_heads=6)
    small = Shape("vit_small", 12, 1, 16, 256, predictor_dim=384, predictor_depth=6, predictor_heads=12)
    base = Shape("vit_base", 12, 2, 16, 128, predictor_dim=384, predictor_depth=12, predictor_heads=12)
    every = {"quick", "full"}
    return [
        make_case("vjepa2-vittiny-8f-128", tiny, "bf16", every),
        make_case("vjepa2-vittiny-8f-128", tiny, "fp32", every),
        make_case("vjepa2-vits-16f", small, "bf16", {"full"}),
        make_case("vjepa2-vitb-16f-128", base, "bf16", {"full"}),
        make_case("vjepa2-vitb-16f-128", base, "fp32", {"full"}),
    ]
