"""One whole V-JEPA 2 training step: our models on each backend, against the eager model in the official form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import eager_vjepa2 as eager
from .. import work as formulas
from ..correctness import Tolerance
from ..providers import kernel_providers
from .base import Case, Provider, Setting, Work

OPERATORS = ("patch_embed", "patch_embed_pair", "masked_attention", "jepa_loss", "adamw_ema")
CHECKED_STEPS = 3
# The loss is one number, and PyTorch's own error in it can be small by luck: allow about one rounding of the dtype.
FLOOR = {"bf16": 2.0**-8, "fp32": 2.0**-18}


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


@dataclass(frozen=True)
class StepInputs:
    """uint8 clips (B, T, H, W, 3), the masks, and the weights that every provider starts from."""

    clips: Tensor
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
    sampler = masks.MultiBlockMask3D(shape.grid, generator=setting.generator())
    context, target = sampler(shape.batch)
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
    device = setting.device
    return StepInputs(
        clips=setting.clip().cut(shape.batch, shape.frames, shape.size).to(device),
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


def _kernel_setup(inputs: StepInputs) -> Callable[[], Tensor]:
    from ... import models

    model = _build(inputs.shape, 0)
    model.load_state_dict(inputs.state)
    model.to(inputs.clips.device)
    optimizer = models.make_adamw_ema(model, shadow_dtype=inputs.autocast)

    def step() -> Tensor:
        loss, _ = models.train_step(
            model,
            inputs.clips,
            inputs.masks_enc,
            inputs.masks_pred,
            optimizer,
            autocast_dtype=inputs.autocast,
        )
        return loss

    return step


def _eager_setup(
    inputs: StepInputs, *, double: bool = False, fused: bool = False, compiled: bool = False
) -> Callable[[], Tensor]:
    from ...models import configs

    model = eager.EagerVJEPA2(inputs.config)
    model.load_state_dict(inputs.state)
    model.to(inputs.clips.device, torch.float64 if double else torch.float32)
    if compiled:
        model.compile(dynamic=False)
    optimizer = model.make_optimizer(configs.LEARNING_RATE, configs.WEIGHT_DECAY, fused=fused)
    return partial(
        eager.train_step,
        model,
        inputs.clips,
        inputs.masks_enc,
        inputs.masks_pred,
        optimizer,
        mean=torch.tensor(configs.PIXEL_MEAN, dtype=torch.float64, device=inputs.clips.device),
        std=torch.tensor(configs.PIXEL_STD, dtype=torch.float64, device=inputs.clips.device),
        momentum=configs.MOMENTUM,
        autocast_dtype=None if double else inputs.autocast,
    )


def run(step: Callable[[], Tensor]) -> Tensor:
    """A provider's call: one step, and its loss."""
    return step()


def losses(step: Callable[[], Tensor], first: Tensor) -> list[Tensor]:
    """Losses of the first steps: the later ones depend on gradients, optimiser and target update."""
    return [torch.stack([first, *(step() for _ in range(CHECKED_STEPS - 1))])]


def _eager_losses(inputs: StepInputs, *, double: bool = False) -> list[Tensor]:
    step = _eager_setup(inputs, double=double)
    return losses(step, step())


def _eager_provider(name: str, about: str, *, fused: bool = False, compiled: bool = False) -> Provider:
    setup = partial(_eager_setup, fused=fused, compiled=compiled)
    return Provider(name, run, setup, outputs=losses, about=about)


def _providers(compiled: bool, device: torch.device) -> list[Provider]:
    found = [
        *kernel_providers(OPERATORS, device, run, setup=_kernel_setup, outputs=losses),
        _eager_provider("torch-eager", "eager, in the official form"),
        _eager_provider("torch-eager-fused", "the same, AdamW(fused=True)", fused=True),
    ]
    if compiled:
        found.append(_eager_provider("torch-compile", "model compiled, AdamW(fused=True)", fused=True, compiled=True))
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
