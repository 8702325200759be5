"""Feature extraction with the encoders of Hugging Face transformers: as they are, and after `jk.patch`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...backends import BackendError
from .. import work as formulas
from ..correctness import Tolerance
from ..providers import kernel_providers
from .base import DTYPES, Case, Provider, Setting, Work
from .patch_embed_forms import MEAN, STD

OPERATORS = ("patch_embed", "masked_attention")
ABSENT = "transformers is not installed; install it with: pip install 'jepa-kernels[integrations]'"
MLP_RATIO = 4


@dataclass(frozen=True)
class Shape:
    """An encoder of transformers. `tubelet` 0 means I-JEPA on images, else V-JEPA 2 on clips."""

    batch: int
    frames: int
    size: int
    patch: int
    tubelet: int
    dim: int
    depth: int
    heads: int

    @property
    def tokens(self) -> int:
        """Tokens of one clip or image."""
        return (self.frames // self.tubelet if self.tubelet else 1) * (self.size // self.patch) ** 2


@dataclass(frozen=True)
class EncoderInputs:
    """Normalised pixels, (B, T, C, H, W) or (B, C, H, W), and the weights that every provider starts from."""

    pixels: Tensor
    weights: dict[str, Tensor]
    shape: Shape


@dataclass
class Encoder:
    """A model ready to be called, and what `jk.patch` did to it."""

    model: nn.Module
    pixels: Tensor
    shape: Shape
    report: Any = None


def _build(shape: Shape, attention: str = "sdpa") -> nn.Module:
    import transformers

    sizes: dict[str, Any] = {"hidden_size": shape.dim, "num_hidden_layers": shape.depth, "num_attention_heads": shape.heads}
    sizes |= {"patch_size": shape.patch, "attn_implementation": attention}
    if shape.tubelet:
        clips = {"crop_size": shape.size, "frames_per_clip": shape.frames, "tubelet_size": shape.tubelet}
        config = transformers.VJEPA2Config(mlp_ratio=MLP_RATIO, **clips, **sizes)
        return transformers.VJEPA2Model(config).eval()
    config = transformers.IJepaConfig(image_size=shape.size, intermediate_size=MLP_RATIO * shape.dim, **sizes)
    return transformers.IJepaModel(config, add_pooling_layer=False).eval()


def _inputs(shape: Shape, dtype: torch.dtype, setting: Setting) -> EncoderInputs:
    if importlib.util.find_spec("transformers") is None:
        raise BackendError(ABSENT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        weights = {key: _cast(value, dtype).to(setting.device) for key, value in _build(shape).state_dict().items()}
    clip = setting.clip().cut(shape.batch, max(shape.frames, 1), shape.size).to(setting.device)
    pixels = ((clip.float() - clip.new_tensor(MEAN, dtype=torch.float32)) / clip.new_tensor(STD, dtype=torch.float32)).to(dtype)
    pixels = pixels.permute(0, 1, 4, 2, 3).contiguous()
    return EncoderInputs(pixels if shape.tubelet else pixels[:, 0], weights, shape)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value.clone()


def _setup(inputs: EncoderInputs, *, attention: str = "sdpa", patched: bool = False) -> Encoder:
    model = _build(inputs.shape, attention).to(inputs.pixels.device, inputs.pixels.dtype)
    model.load_state_dict(inputs.weights)
    if not patched:
        return Encoder(model, inputs.pixels, inputs.shape)
    import jepa_kernels as jk

    report = jk.patch(model)
    if len(report.replaced) < inputs.shape.depth + 1:  # every attention, and the patch embedding
        raise RuntimeError(f"jk.patch left parts of the model as they were: {report}")
    return Encoder(model, inputs.pixels, inputs.shape, report)


def _run(encoder: Encoder) -> Tensor:
    """The last hidden state (B, N, D)."""
    with torch.inference_mode():
        if encoder.shape.tubelet:
            out = encoder.model(pixel_values_videos=encoder.pixels, skip_predictor=True)
        else:
            out = encoder.model(pixel_values=encoder.pixels)
    hidden: Tensor = out.last_hidden_state
    return hidden


def _outputs(encoder: Encoder, hidden: Tensor) -> list[Tensor]:
    if encoder.report is not None and encoder.report.fallbacks:
        raise RuntimeError(f"the model ran its own code instead of the kernels: {encoder.report.fallbacks}")
    return [hidden]


def _exact(inputs: EncoderInputs) -> list[Tensor]:
    """The plain model in float64, with the weights and pixels as the dtype of the case has rounded them."""
    weights = {key: _cast(value, torch.float64) for key, value in inputs.weights.items()}
    return _low_precision(replace(inputs, pixels=inputs.pixels.double(), weights=weights))


def _low_precision(inputs: EncoderInputs) -> list[Tensor]:
    return [_run(_setup(inputs, attention="eager"))]


def _work(inputs: EncoderInputs) -> Work:
    shape, size = inputs.shape, inputs.pixels.element_size()
    tokens = shape.batch * shape.tokens
    patch_values = 3 * max(shape.tubelet, 1) * shape.patch**2
    flops: float = formulas.patch_embed_flops(tokens, patch_values, shape.dim)
    flops += formulas.transformer_flops(tokens, tokens * shape.tokens, shape.dim, shape.depth, mlp_ratio=MLP_RATIO)
    used = sum(value.nbytes for key, value in inputs.weights.items() if not key.startswith("predictor."))
    return Work(flops, used + inputs.pixels.nbytes + tokens * shape.dim * size, shape.batch, tokens)


def _plain(name: str, attention: str, about: str) -> Provider:
    return Provider(name, _run, partial(_setup, attention=attention), about=about)


def _providers(device: torch.device) -> list[Provider]:
    return [
        *kernel_providers(
            OPERATORS, device, _run, setup=partial(_setup, patched=True), outputs=_outputs, about="after jk.patch"
        ),
        _plain("torch-transformers", "sdpa", "transformers as it loads a model, attention through SDPA"),
        _plain("torch-transformers-eager", "eager", "transformers with attn_implementation='eager'"),
    ]


def make_case(name: str, shape: Shape, dtype: str, tags: set[str]) -> Case:
    """One encoder case; the name gains its batch. Without transformers all its providers are told as unsupported."""
    make: Callable[[Setting], EncoderInputs] = partial(_inputs, shape, DTYPES[dtype])
    return Case(
        operator="encoder",
        name=f"{name}-b{shape.batch}",
        dtype=dtype,
        shape=dict(vars(shape)),
        make_inputs=make,
        providers=_providers,
        work=_work,
        reference=_exact,
        low_precision=_low_precision,
        peer="torch-transformers",
        tags=frozenset(tags),
        tolerance=Tolerance(floor={"bf16": 2.0**-8, "fp32": 2.0**-18}[dtype]),
    )


def cases() -> list[Case]:
    """The encoder cases: ViT-B of V-JEPA 2 and of I-JEPA, as they are used to extract features."""
    vjepa2 = Shape(batch=1, frames=16, size=128, patch=16, tubelet=2, dim=768, depth=12, heads=12)
    ijepa = replace(vjepa2, batch=2, frames=1, size=224, tubelet=0)
    return [
        make_case("transformers-vjepa2-vitb-16f-128", vjepa2, "bf16", {"full"}),
        make_case("transformers-vjepa2-vitb-16f-128", vjepa2, "fp32", {"full"}),
        make_case("transformers-ijepa-vitb16-224", ijepa, "bf16", {"full"}),
    ]
