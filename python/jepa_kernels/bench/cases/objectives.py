"""One training step of each objective on the same encoder and inputs: I-JEPA, LeJEPA, DINO, VICReg, MAE; V-JEPA 2, VideoMAE.

Every case times its objective by our backends, by the plain operators, and beside them, as a yardstick in the same rounds, the
step of the JEPA on the same images or clips: their ratio is what the objective costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...backends import BackendError
from ...backends import backend as forced_backend
from .. import work as formulas
from ..correctness import Tolerance
from ..providers import kernel_providers
from .base import Case, Provider, Setting, Work
from .training_steps import FLOOR

OPERATORS = ("patch_embed", "masked_attention", "jepa_loss", "adamw_ema")
IMAGES = ("ijepa", "lejepa", "dino", "vicreg", "mae")
CLIPS = ("vjepa2", "videomae")
JEPA = {**dict.fromkeys(IMAGES, "ijepa"), **dict.fromkeys(CLIPS, "vjepa2")}
OVER_VIEWS = ("lejepa", "dino", "vicreg")
GLOBAL_CROPS = 2
LOCAL_CROPS = {"lejepa": 6, "dino": 8, "vicreg": 0}  # as published; DINO's small setting
MASK_RATIO = {"mae": 0.75, "videomae": 0.9}
SIGREG_SLICES, SIGREG_POINTS = 1024, 17
CHECKED_STEPS = 2
MOMENTUM = 0.996
# Batch norm over a few samples divides by their spread, and with it enlarges every rounding before it.
BATCH_NORM_FLOOR = {"bf16": 2.0**-6, "fp32": FLOOR["fp32"]}


@dataclass(frozen=True)
class Shape:
    """The encoder, cut to `depth` blocks (0: whole), its inputs, and the predictor, decoder and heads of the objectives."""

    encoder: str
    batch: int
    frames: int
    size: int
    predictor: tuple[int, int, int]  # width, depth, heads
    decoder: tuple[int, int, int]
    depth: int = 0
    patch: int = 16
    tubelet: int = 2
    local_size: int = 96
    hidden: int = 2048  # of LeJEPA's projector and DINO's head
    expander: int = 2048  # of VICReg, hidden and out
    prototypes: int = 4096

    @property
    def grid(self) -> tuple[int, int, int]:
        return max(1, self.frames // self.tubelet), self.size // self.patch, self.size // self.patch


@dataclass(frozen=True)
class StepInputs:
    """What `train_step` takes, and the weights that every provider starts from."""

    samples: Any
    masks_enc: list[Tensor]
    masks_pred: list[Tensor]
    state: dict[str, Tensor]
    trained: int
    objective: str
    shape: Shape
    dtype: str
    device: torch.device
    beside: StepInputs | None = None  # the JEPA on the same images or clips

    @property
    def autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.dtype == "bf16" else None


@dataclass(frozen=True)
class Pass:
    """One run through a stack of blocks: tokens and query-key pairs in all, width and depth, with or without backward."""

    tokens: int
    pairs: int
    dim: int
    depth: int
    backward: bool = True


def build(objective: str, shape: Shape, seed: int = 0) -> Any:
    """The model of an objective at a shape."""
    from ... import models

    shared: dict[str, Any] = {"img_size": shape.size, "patch_size": shape.patch, "seed": seed}
    shared["encoder"] = {"depth": shape.depth} if shape.depth else None
    clip: dict[str, Any] = {"num_frames": shape.frames, "tubelet_size": shape.tubelet}
    names = ("pred_embed_dim", "pred_depth", "pred_num_heads")
    predictor: dict[str, Any] = dict(zip(names, shape.predictor, strict=True))
    decoder: dict[str, Any] = dict(zip(names, shape.decoder, strict=True))
    if objective == "ijepa":
        return models.build_ijepa(shape.encoder, **predictor, **shared)
    if objective == "vjepa2":
        return models.build_vjepa2(shape.encoder, **predictor, **clip, **shared)
    if objective == "lejepa":
        return models.build_lejepa(shape.encoder, hidden_dim=shape.hidden, num_slices=SIGREG_SLICES, **shared)
    if objective == "dino":
        return models.build_dino(shape.encoder, hidden_dim=shape.hidden, prototypes=shape.prototypes, **shared)
    if objective == "vicreg":
        return models.build_vicreg(shape.encoder, hidden_dim=shape.expander, proj_dim=shape.expander, **shared)
    return models.build_mae(shape.encoder, **decoder, **clip, **shared)


def _masks(objective: str, shape: Shape, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    from ... import masks

    if objective in OVER_VIEWS:
        return [], []
    if objective == "ijepa":
        rectangles = masks.RectangleMasks(min_keep=min(10, shape.grid[1] * shape.grid[2] // 8))
        return masks.MultiBlockMask2D(shape.grid[1:], rectangles, generator)(shape.batch)
    if objective == "vjepa2":
        return masks.MultiBlockMask3D(shape.grid, generator=generator)(shape.batch)
    return masks.RandomMask(shape.grid, MASK_RATIO[objective], generator)(shape.batch)


def _inputs(objective: str, shape: Shape, dtype: str, setting: Setting) -> StepInputs:
    if shape.encoder == "vit_large" and setting.device.type == "cpu":
        raise BackendError("steps of ViT-L are measured on a GPU; the cases of a smaller encoder are for CPUs")
    pixels = setting.clip().cut(shape.batch, shape.frames, shape.size).to(setting.device)
    samples: Any = pixels if shape.frames > 1 else pixels[:, 0]
    if objective in OVER_VIEWS:
        small = samples[:, : shape.local_size, : shape.local_size].contiguous()
        samples = [samples, samples.flip(2).contiguous(), *[small] * LOCAL_CROPS[objective]]
    context, target = _masks(objective, shape, setting.generator())
    model = build(objective, shape, setting.seed)
    beside = JEPA[objective]
    return StepInputs(
        samples=samples,
        masks_enc=[m.to(setting.device) for m in context],
        masks_pred=[m.to(setting.device) for m in target],
        state={k: v.detach().clone() for k, v in model.state_dict().items()},
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        objective=objective,
        shape=shape,
        dtype=dtype,
        device=setting.device,
        beside=None if beside == objective else _inputs(beside, shape, dtype, setting),
    )


def passes(inputs: StepInputs) -> list[Pass]:
    """Every run of a step through blocks: of the encoder, of its target, of the predictor or decoder."""
    from ... import models

    shape, objective, batch = inputs.shape, inputs.objective, inputs.shape.batch
    size = models.encoder_size(shape.encoder)
    dim, depth = size.embed_dim, shape.depth or size.depth
    tokens = shape.grid[0] * shape.grid[1] * shape.grid[2]

    def run(sequences: int, length: int, width: int = dim, blocks: int = depth, backward: bool = True) -> Pass:
        return Pass(sequences * length, sequences * length**2, width, blocks, backward)

    if objective in OVER_VIEWS:
        small = (shape.local_size // shape.patch) ** 2
        student = [run(GLOBAL_CROPS * batch, tokens), run(LOCAL_CROPS[objective] * batch, small)]
        return [*student, run(GLOBAL_CROPS * batch, tokens, backward=False)] if objective == "dino" else student
    kept = [run(batch, mask.shape[1]) for mask in inputs.masks_enc]
    if objective in MASK_RATIO:
        return [*kept, run(batch, tokens, *shape.decoder[:2])]
    contexts = inputs.masks_enc if objective == "vjepa2" else inputs.masks_enc * len(inputs.masks_pred)
    lengths = [context.shape[1] + target.shape[1] for context, target in zip(contexts, inputs.masks_pred, strict=True)]
    return [run(batch, tokens, backward=False), *kept, *(run(batch, length, *shape.predictor[:2]) for length in lengths)]


def _head_flops(inputs: StepInputs) -> float:
    """Matrix products before and after the blocks of predictor, decoder or head, and SIGReg; forward and backward."""
    from ... import models

    shape, objective, batch = inputs.shape, inputs.objective, inputs.shape.batch
    dim = models.encoder_size(shape.encoder).embed_dim
    if objective in OVER_VIEWS:
        views = GLOBAL_CROPS + LOCAL_CROPS[objective]
        heads = {
            "lejepa": (dim, shape.hidden, shape.hidden, 64),
            "vicreg": (dim, shape.expander, shape.expander, shape.expander),
            "dino": (dim, shape.hidden, shape.hidden, 256, shape.prototypes),
        }[objective]
        weights = sum(a * b for a, b in zip(heads[:-1], heads[1:], strict=True))
        flops: float = 6 * views * batch * weights
        if objective == "lejepa":
            flops += formulas.sigreg_flops(views, batch, 64, SIGREG_SLICES, SIGREG_POINTS)
        elif objective == "vicreg":
            flops += views * 4 * batch * shape.expander**2  # a covariance a view, forward and backward
        else:
            flops += 2 * GLOBAL_CROPS * batch * weights
        return flops
    into = sum(m.numel() for m in inputs.masks_enc) * (len(inputs.masks_pred) if objective == "ijepa" else 1)
    out = sum(m.numel() for m in inputs.masks_pred)
    if objective in MASK_RATIO:
        values = 3 * (shape.tubelet if shape.frames > 1 else 1) * shape.patch**2
        return 6 * shape.decoder[0] * (into * dim + out * values)
    return 6 * shape.predictor[0] * dim * (into + out)


def embedded(inputs: StepInputs) -> tuple[int, int]:
    """Tokens that patch embeddings make: with a gradient of the weight, and without."""
    batch, tokens = inputs.shape.batch, inputs.shape.grid[0] * inputs.shape.grid[1] * inputs.shape.grid[2]
    if inputs.objective in OVER_VIEWS:
        small = (inputs.shape.local_size // inputs.shape.patch) ** 2
        trained = batch * (GLOBAL_CROPS * tokens + LOCAL_CROPS[inputs.objective] * small)
        return trained, GLOBAL_CROPS * batch * tokens if inputs.objective == "dino" else 0
    kept = sum(mask.numel() for mask in inputs.masks_enc)
    return kept, 0 if inputs.objective in MASK_RATIO else batch * tokens


def _work(inputs: StepInputs) -> Work:
    """Matrix products; and the bytes of a step whose blocks are fused as far as they can be, its optimiser and EMA."""
    from ... import models

    shape, value_bytes = inputs.shape, 2 if inputs.dtype == "bf16" else 4
    size = models.encoder_size(shape.encoder)
    values = 3 * (shape.tubelet if shape.frames > 1 else 1) * shape.patch**2
    trained, target = embedded(inputs)
    flops = _head_flops(inputs) + formulas.patch_embed_flops(2 * trained + target, values, size.embed_dim)
    moved: float = 28 * inputs.trained + (trained + target) * (values + size.embed_dim * value_bytes)
    for each in passes(inputs):
        # Predictors and decoders have an MLP ratio of 4, whatever the encoder's.
        ratio = size.mlp_ratio if each.dim == size.embed_dim else 4.0
        flops += formulas.transformer_flops(
            each.tokens, each.pairs, each.dim, each.depth, mlp_ratio=ratio, backward=each.backward
        )
        moved += formulas.transformer_bytes(
            each.tokens, each.dim, each.depth, mlp_ratio=ratio, value_bytes=value_bytes, backward=each.backward
        )
    if inputs.objective in ("ijepa", "vjepa2", "dino"):
        followed = "teacher." if inputs.objective == "dino" else "target_encoder."
        moved += formulas.ema_bytes(sum(v.numel() for k, v in inputs.state.items() if k.startswith(followed)))
    tokens = shape.grid[0] * shape.grid[1] * shape.grid[2]
    return Work(flops, moved, shape.batch, shape.batch * tokens)


def _setup(inputs: StepInputs, *, double: bool = False, plain: bool = False) -> Callable[[], Tensor]:
    from ... import models

    model: nn.Module = build(inputs.objective, inputs.shape)
    model.load_state_dict(inputs.state)
    model.to(inputs.device, torch.float64 if double else torch.float32)
    autocast = None if double else inputs.autocast
    optimizer: Any = models.make_optimizer(model) if plain else models.make_adamw_ema(model, shadow_dtype=autocast)

    def step() -> Tensor:
        arguments = (inputs.samples, inputs.masks_enc, inputs.masks_pred)
        return models.train_step(model, *arguments, optimizer, MOMENTUM, autocast_dtype=autocast)[0]

    return step


def _run(step: Callable[[], Tensor]) -> Tensor:
    return step()


def _losses(step: Callable[[], Tensor], first: Tensor) -> list[Tensor]:
    """Losses of the first steps: the later ones depend on gradients, optimiser and target update."""
    return [torch.stack([first, *(step() for _ in range(CHECKED_STEPS - 1))])]


def _plain_losses(inputs: StepInputs, *, double: bool = False) -> list[Tensor]:
    with forced_backend("reference"):
        step = _setup(inputs, double=double, plain=True)
        return _losses(step, step())


def _beside(inputs: StepInputs) -> Callable[[], Tensor]:
    assert inputs.beside is not None
    return _setup(inputs.beside)


def _providers(objective: str, device: torch.device) -> Sequence[Provider]:
    found = kernel_providers(OPERATORS, device, _run, setup=_setup, outputs=_losses)
    if JEPA[objective] != objective:
        about = f"one step of {JEPA[objective]} on the same images or clips, by the backend that runs by itself"
        found.append(Provider(f"{JEPA[objective]}-step", _run, _beside, about=about, yardstick=True))
    return found


def make_case(objective: str, name: str, shape: Shape, dtype: str, tags: set[str]) -> Case:
    """The step of one objective; the peer is the same model on the plain operators."""
    sizes = {key: "/".join(map(str, v)) if isinstance(v, tuple) else v for key, v in asdict(shape).items()}
    return Case(
        operator="objectives",
        name=f"{objective}-{name}-b{shape.batch}",
        dtype=dtype,
        shape={"objective": objective, **sizes},
        make_inputs=partial(_inputs, objective, shape, dtype),
        providers=partial(_providers, objective),
        work=_work,
        reference=partial(_plain_losses, double=True),
        low_precision=_plain_losses,
        peer="jk-reference",
        tags=frozenset(tags),
        tolerance=Tolerance(floor=(BATCH_NORM_FLOOR if objective in ("lejepa", "vicreg") else FLOOR)[dtype]),
    )


def cases() -> list[Case]:
    """Small encoders for CPUs, and ViT-L, whose steps need a GPU."""
    images = Shape("vit_tiny", 4, 1, 224, predictor=(96, 6, 3), decoder=(96, 4, 3))
    clips = Shape("vit_tiny", 2, 16, 128, predictor=(96, 6, 3), decoder=(96, 4, 3))
    large = Shape(
        "vit_large", 32, 1, 224, predictor=(384, 12, 12), decoder=(512, 8, 16), expander=8192, prototypes=65536
    )
    large_clips = Shape("vit_large", 8, 16, 224, predictor=(384, 12, 12), decoder=(512, 12, 8))
    return [
        make_case(objective, name, shape, "bf16", {"full"})
        for objectives, sized in (
            (IMAGES, (("vittiny-224", images), ("vitl-224", large))),
            (CLIPS, (("vittiny-16f-128", clips), ("vitl-16f-224", large_clips))),
        )
        for name, shape in sized
        for objective in objectives
    ]
