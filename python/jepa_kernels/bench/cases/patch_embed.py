"""Patch embedding from uint8 video or images: all tokens, or the tenth that a context mask keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .. import work as formulas
from ..providers import kernel_providers
from .base import DTYPES, Case, Provider, Setting, Work
from .masks import keep_block

MEAN = (123.675, 116.28, 103.53)  # ImageNet, in the pixels' own 0..255 unit
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Shape:
    """A patch embedding of a real model. `tubelet` 0 means images; `kept` is the share of tokens kept, or 1."""

    batch: int
    frames: int
    size: int
    patch: int
    tubelet: int
    dim: int
    kept: float = 1.0

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along frame, row and column."""
        side = self.size // self.patch
        return (self.frames // self.tubelet if self.tubelet else 1), side, side

    @property
    def patch_values(self) -> int:
        return 3 * max(self.tubelet, 1) * self.patch**2


@dataclass(frozen=True)
class PatchInputs:
    """Pixels (B, C, [T,] H, W) as a view of the decoder's channels-last output, weights and kept ids."""

    pixels: Tensor
    weight: Tensor
    bias: Tensor
    keep: Tensor | None
    mean: Tensor
    std: Tensor
    shape: Shape

    def cast(self, dtype: torch.dtype) -> PatchInputs:
        """The same inputs with weights in another dtype."""
        return replace(self, weight=self.weight.to(dtype), bias=self.bias.to(dtype))


def _inputs(shape: Shape, dtype: torch.dtype, setting: Setting) -> PatchInputs:
    generator = setting.generator()
    clip = setting.clip().cut(shape.batch, max(shape.frames, 1), shape.size).to(setting.device)
    if shape.tubelet:
        pixels = clip.permute(0, 4, 1, 2, 3)
        kernel: tuple[int, ...] = (shape.tubelet, shape.patch, shape.patch)
    else:
        pixels = clip[:, 0].permute(0, 3, 1, 2)
        kernel = (shape.patch, shape.patch)
    weight = torch.randn(shape.dim, 3, *kernel, generator=generator) * 0.02
    bias = torch.randn(shape.dim, generator=generator) * 0.02
    keep = None
    if shape.kept < 1:
        keep = keep_block(generator, shape.batch, *shape.grid, shape.kept).to(setting.device)
    return PatchInputs(
        pixels,
        weight.to(setting.device, dtype),
        bias.to(setting.device, dtype),
        keep,
        torch.tensor(MEAN, device=setting.device),
        torch.tensor(STD, device=setting.device),
        shape,
    )


def _work(inputs: PatchInputs) -> Work:
    shape = inputs.shape
    frames, height, width = shape.grid
    tokens = inputs.keep.numel() if inputs.keep is not None else shape.batch * frames * height * width
    size = inputs.weight.element_size()
    return Work(
        formulas.patch_embed_flops(tokens, shape.patch_values, shape.dim),
        formulas.patch_embed_bytes(
            tokens, shape.patch_values, shape.dim, pixel_bytes=1, weight_bytes=size, out_bytes=size
        ),
        shape.batch,
        tokens,
    )


def _twin(inputs: PatchInputs) -> list[Tensor]:
    from ... import reference

    out = reference.patch_embed(
        inputs.pixels, inputs.weight, inputs.bias, keep=inputs.keep, mean=inputs.mean, std=inputs.std
    )
    return [out]


def _double(inputs: PatchInputs) -> list[Tensor]:
    return _twin(replace(inputs.cast(torch.float64), mean=inputs.mean.double(), std=inputs.std.double()))


def _kernel(inputs: PatchInputs) -> Tensor:
    import jepa_kernels as jk

    return jk.patch_embed(
        inputs.pixels, inputs.weight, inputs.bias, keep=inputs.keep, mean=inputs.mean, std=inputs.std
    )


def _conv(inputs: PatchInputs) -> Tensor:
    """The official form: normalise every pixel, convolve every patch, then gather the kept tokens."""
    trailing = (1,) * (inputs.pixels.ndim - 2)
    mean, std = inputs.mean.view(-1, *trailing), inputs.std.view(-1, *trailing)
    normalised = ((inputs.pixels.float() - mean) / std).to(inputs.weight.dtype)
    convolve = functional.conv3d if inputs.pixels.ndim == 5 else functional.conv2d
    stride = inputs.weight.shape[2:]
    tokens = convolve(normalised, inputs.weight, inputs.bias, stride=stride).flatten(2).transpose(1, 2)
    if inputs.keep is None:
        return tokens
    return torch.gather(tokens, 1, inputs.keep[..., None].expand(-1, -1, tokens.shape[-1]))


def _unfold_linear(inputs: PatchInputs) -> Tensor:
    """The best plain PyTorch: gather kept uint8 patches first, normalise those alone, one matrix product."""
    shape, (frames, height, width) = inputs.shape, inputs.shape.grid
    pixels = inputs.pixels if inputs.pixels.ndim == 5 else inputs.pixels.unsqueeze(2)
    depth = max(shape.tubelet, 1)
    split = pixels.unflatten(2, (frames, depth)).unflatten(4, (height, shape.patch))
    patches = split.unflatten(6, (width, shape.patch)).permute(0, 2, 4, 6, 1, 3, 5, 7)  # b t r c C pt ph pw
    if inputs.keep is not None:
        sample = torch.arange(patches.shape[0], device=patches.device)[:, None]
        plane = height * width
        frame, place = inputs.keep // plane, inputs.keep % plane
        patches = patches[sample, frame, place // width, place % width]
    else:
        patches = patches.flatten(1, 3)
    trailing = (1, 1, 1)
    mean, scale = inputs.mean.view(-1, *trailing), inputs.std.reciprocal().view(-1, *trailing)
    rows = ((patches.float() - mean) * scale).to(inputs.weight.dtype).flatten(2)
    return functional.linear(rows, inputs.weight.flatten(1), inputs.bias)


def _in_fp32(inputs: PatchInputs) -> PatchInputs:
    return inputs.cast(torch.float32)


def _providers(dtype: str, device: torch.device) -> list[Provider]:
    found = [
        *kernel_providers("patch_embed", device, _kernel),
        Provider("torch-conv", _conv, about="the official form, in the dtype of the case"),
        Provider("torch-unfold-linear", _unfold_linear, about="kept patches only, one matrix product"),
    ]
    if dtype == "bf16":
        found.append(Provider("torch-conv-fp32", _conv, _in_fp32, about="the official form in fp32"))
    return found


def make_case(name: str, shape: Shape, dtype: str, tags: set[str]) -> Case:
    """One patch-embedding case; the name gains its masking and batch."""
    kind = "dense" if shape.kept == 1 else f"masked{round(100 - 100 * shape.kept)}"
    return Case(
        operator="patch_embed",
        name=f"{name}-{kind}-b{shape.batch}",
        dtype=dtype,
        shape={k: getattr(shape, k) for k in ("batch", "frames", "size", "patch", "tubelet", "dim", "kept")},
        make_inputs=lambda setting: _inputs(shape, DTYPES[dtype], setting),
        providers=lambda device: _providers(dtype, device),
        work=_work,
        reference=_double,
        low_precision=_twin,
        peer="torch-conv",
        tags=frozenset(tags),
    )


def cases() -> list[Case]:
    """The patch-embedding cases."""
    vitl = Shape(batch=1, frames=16, size=256, patch=16, tubelet=2, dim=1024)
    masked = replace(vitl, kept=0.1)
    vith = Shape(batch=4, frames=1, size=224, patch=14, tubelet=0, dim=1280)
    every = {"quick", "full"}
    return [
        make_case("vjepa2-vitl-16f", vitl, "bf16", every),
        make_case("vjepa2-vitl-16f", vitl, "fp32", every),
        make_case("vjepa2-vitl-16f", masked, "bf16", every),
        make_case("vjepa2-vitl-16f", masked, "fp32", every),
        make_case("ijepa-vith14", vith, "bf16", every),
        make_case("vjepa2-vitl-16f", replace(vitl, batch=8), "bf16", {"full"}),
        make_case("vjepa2-vitl-16f", replace(masked, batch=8), "bf16", {"full"}),
        make_case("ijepa-vith14", replace(vith, batch=32), "bf16", {"full"}),
    ]
