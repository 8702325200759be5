"""The patch embeddings of one V-JEPA 2 step: all tokens for the target, those that two masks keep for the context."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .. import work as formulas
from ..providers import kernel_providers
from .base import DTYPES, Case, Provider, Setting, Work
from .patch_embed import Shape
from .patch_embed_forms import MEAN, STD


@dataclass(frozen=True)
class PairInputs:
    """uint8 pixels (B, C, T, H, W) as a view of the decoder's output, two sets of weights, the masks of the context."""

    pixels: Tensor
    target: tuple[Tensor, Tensor]
    context: tuple[Tensor, Tensor]
    masks: tuple[Tensor, ...]
    mean: Tensor
    std: Tensor

    def cast(self, dtype: torch.dtype) -> PairInputs:
        """The same inputs with weights in another dtype."""
        target, context = ((weight.to(dtype), bias.to(dtype)) for weight, bias in (self.target, self.context))
        return replace(self, target=target, context=context)


def _inputs(shape: Shape, kept: tuple[int, ...], dtype: torch.dtype, setting: Setting) -> PairInputs:
    generator = setting.generator()
    pixels = setting.clip().cut(shape.batch, shape.frames, shape.size).to(setting.device).permute(0, 4, 1, 2, 3)
    sets = []
    for _ in range(2):
        weight = torch.randn(shape.dim, 3, shape.tubelet, shape.patch, shape.patch, generator=generator) * 0.02
        bias = torch.randn(shape.dim, generator=generator) * 0.02
        sets.append((weight.to(setting.device, dtype), bias.to(setting.device, dtype)))
    frames, height, width = shape.grid
    masks = []
    for count in kept:
        order = [torch.randperm(frames * height * width, generator=generator)[:count] for _ in range(shape.batch)]
        masks.append(torch.stack(order).sort(dim=1).values.to(setting.device))
    moments = (torch.tensor(values, device=setting.device) for values in (MEAN, STD))
    return PairInputs(pixels, sets[0], sets[1], tuple(masks), *moments)


def _twin(inputs: PairInputs) -> list[Tensor]:
    from ... import reference

    found = reference.patch_embed_pair(
        inputs.pixels, *inputs.target, *inputs.context, keep=inputs.masks, mean=inputs.mean, std=inputs.std
    )
    return [found[0], *found[1]]


def _double(inputs: PairInputs) -> list[Tensor]:
    return _twin(replace(inputs.cast(torch.float64), mean=inputs.mean.double(), std=inputs.std.double()))


def _kernel(inputs: PairInputs) -> list[Tensor]:
    import jepa_kernels as jk

    found = jk.patch_embed_pair(
        inputs.pixels, *inputs.target, *inputs.context, keep=inputs.masks, mean=inputs.mean, std=inputs.std
    )
    return [found[0], *found[1]]


def _calls(inputs: PairInputs) -> list[Tensor]:
    """One call for the target and one for each mask, each reading the pixels."""
    import jepa_kernels as jk

    def embed(own: tuple[Tensor, Tensor], keep: Tensor | None) -> Tensor:
        return jk.patch_embed(inputs.pixels, *own, keep=keep, mean=inputs.mean, std=inputs.std)

    return [embed(inputs.target, None), *(embed(inputs.context, mask) for mask in inputs.masks)]


def _official(inputs: PairInputs) -> list[Tensor]:
    """Normalise once to float32; then cast, convolve every patch and gather, for the target and for each mask."""
    pixels = inputs.pixels.float().contiguous()
    pixels = (pixels - inputs.mean.view(-1, 1, 1, 1)) / inputs.std.view(-1, 1, 1, 1)

    def embed(own: tuple[Tensor, Tensor], keep: Tensor | None) -> Tensor:
        stride = own[0].shape[2:]
        tokens = functional.conv3d(pixels.to(own[0].dtype), *own, stride=stride).flatten(2).transpose(1, 2)
        return tokens if keep is None else torch.gather(tokens, 1, keep[..., None].expand(-1, -1, tokens.shape[-1]))

    return [embed(inputs.target, None), *(embed(inputs.context, mask) for mask in inputs.masks)]


def _work(shape: Shape, kept: tuple[int, ...], inputs: PairInputs) -> Work:
    frames, height, width = shape.grid
    per_clip = frames * height * width
    tokens = shape.batch * (per_clip + sum(kept))
    moved = formulas.patch_embed_step_bytes(
        shape.batch, per_clip, kept, shape.patch_values, shape.dim, fused=True
    )
    weights = sum(tensor.nbytes for tensor in (*inputs.target, *inputs.context))
    flops = formulas.patch_embed_flops(tokens, shape.patch_values, shape.dim)
    return Work(flops, moved + weights, shape.batch, tokens)


def _providers(device: torch.device) -> list[Provider]:
    def separate(provider: Provider) -> Provider:
        return replace(provider, name=f"{provider.name}-calls", run=_calls, about="a call for each, pixels read each time")

    ours = kernel_providers("patch_embed_pair", device, _kernel)
    return [
        *ours,
        *(separate(provider) for provider in ours if provider.name in ("jk-cpu", "jk-triton")),
        Provider("torch-conv", _official, about="the official form, in the dtype of the case"),
    ]


def make_case(name: str, shape: Shape, kept: tuple[int, ...], dtype: str, tags: set[str]) -> Case:
    """One step's embeddings; `kept` counts the tokens an element of each mask."""
    described: dict[str, int | float | str] = {
        key: getattr(shape, key) for key in ("batch", "frames", "size", "patch", "tubelet", "dim")
    }
    return Case(
        operator="patch_embed_pair",
        name=f"{name}-b{shape.batch}",
        dtype=dtype,
        shape={**described, "kept": "+".join(map(str, kept))},
        make_inputs=lambda setting: _inputs(shape, kept, DTYPES[dtype], setting),
        providers=_providers,
        work=lambda inputs: _work(shape, kept, inputs),
        reference=_double,
        low_precision=_twin,
        peer="torch-conv",
        tags=frozenset(tags),
    )


def cases() -> list[Case]:
    """A step of V-JEPA 2 ViT-L with the mean numbers of context tokens that its two masks keep."""
    vitl = Shape(batch=1, frames=16, size=256, patch=16, tubelet=2, dim=1024)
    kept = (501, 138)
    return [
        make_case("vjepa2-vitl-16f", vitl, kept, "bf16", {"quick", "full"}),
        make_case("vjepa2-vitl-16f", vitl, kept, "fp32", {"full"}),
        make_case("vjepa2-vitl-16f", replace(vitl, batch=8), kept, "bf16", {"full"}),
    ]
