"""The forms of patch embedding that are compared: the official one, its parts, the best plain PyTorch, and ours.

Names that begin with `torch-part-` are parts of a form whose other steps were done ahead, untimed: yardsticks, not peers, as
they leave out work that every caller has to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..providers import kernel_providers
from .base import Provider

MEAN = (123.675, 116.28, 103.53)  # ImageNet, in the pixels' own 0..255 unit
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class PatchInputs:
    """Pixels (B, C, [T,] H, W) as a view of the decoder's channels-last output, weights and kept ids."""

    pixels: Tensor
    weight: Tensor
    bias: Tensor
    keep: Tensor | None
    mean: Tensor | None
    std: Tensor | None
    grid: tuple[int, int, int]
    grad: Tensor | None = None  # of the tokens; with it, gradients of weight and bias are part of the call

    def cast(self, dtype: torch.dtype) -> PatchInputs:
        """The same inputs with weights in another dtype."""
        weight, bias = (
            tensor.detach().to(dtype).requires_grad_(self.grad is not None) for tensor in (self.weight, self.bias)
        )
        return replace(self, weight=weight, bias=bias)

    def with_gradients(self, out: Tensor) -> list[Tensor]:
        """The tokens, and the gradients of weight and bias where they are asked for."""
        if self.grad is None:
            return [out]
        return [out.detach(), *torch.autograd.grad(out, (self.weight, self.bias), self.grad.to(out.dtype))]


def _kernel(inputs: PatchInputs) -> list[Tensor]:
    import jepa_kernels as jk

    out = jk.patch_embed(
        inputs.pixels, inputs.weight, inputs.bias, keep=inputs.keep, mean=inputs.mean, std=inputs.std
    )
    return inputs.with_gradients(out)


def _normalised(inputs: PatchInputs, order: torch.memory_format = torch.contiguous_format) -> Tensor:
    """As the official loaders make it: float32, (B, C, T, H, W) in that order in memory."""
    trailing = (1,) * (inputs.pixels.ndim - 2)
    pixels = inputs.pixels.float().contiguous(memory_format=order)
    if inputs.mean is None or inputs.std is None:
        return pixels
    return (pixels - inputs.mean.view(-1, *trailing)) / inputs.std.view(-1, *trailing)


def _convolved(inputs: PatchInputs, pixels: Tensor) -> list[Tensor]:
    convolve = functional.conv3d if pixels.ndim == 5 else functional.conv2d
    stride = inputs.weight.shape[2:]
    tokens = convolve(pixels, inputs.weight, inputs.bias, stride=stride).flatten(2).transpose(1, 2)
    if inputs.keep is not None:
        tokens = torch.gather(tokens, 1, inputs.keep[..., None].expand(-1, -1, tokens.shape[-1]))
    return inputs.with_gradients(tokens)


def _conv(inputs: PatchInputs) -> list[Tensor]:
    """The official form: normalise every pixel, convolve every patch, then gather the kept tokens."""
    return _convolved(inputs, _normalised(inputs).to(inputs.weight.dtype))


def _conv_channels_last(inputs: PatchInputs) -> list[Tensor]:
    """The official form on pixels that stay in the decoder's order, which oneDNN convolves faster."""
    last = torch.channels_last_3d if inputs.pixels.ndim == 5 else torch.channels_last
    return _convolved(inputs, _normalised(inputs, last).to(inputs.weight.dtype))


def _unfolded(inputs: PatchInputs) -> Tensor:
    """Kept patches as normalised rows (B, K, C * pt * ph * pw): gathered as uint8, those alone normalised."""
    frames, height, width = inputs.grid
    pixels = inputs.pixels if inputs.pixels.ndim == 5 else inputs.pixels.unsqueeze(2)
    split = pixels.unflatten(2, (frames, -1)).unflatten(4, (height, -1)).unflatten(6, (width, -1))
    patches = split.permute(0, 2, 4, 6, 1, 3, 5, 7)  # b t r c C pt ph pw
    if inputs.keep is not None:
        sample = torch.arange(patches.shape[0], device=patches.device)[:, None]
        plane = height * width
        frame, place = inputs.keep // plane, inputs.keep % plane
        patches = patches[sample, frame, place // width, place % width]
    else:
        patches = patches.flatten(1, 3)
    rows = patches.float()
    if inputs.mean is not None and inputs.std is not None:
        rows = (rows - inputs.mean.view(-1, 1, 1, 1)) * inputs.std.reciprocal().view(-1, 1, 1, 1)
    return rows.to(inputs.weight.dtype).flatten(2)


def _multiplied(inputs: PatchInputs, rows: Tensor) -> list[Tensor]:
    return inputs.with_gradients(functional.linear(rows, inputs.weight.flatten(1), inputs.bias))


def _unfold_linear(inputs: PatchInputs) -> list[Tensor]:
    """The best plain PyTorch: gather kept uint8 patches first, normalise those alone, one matrix product."""
    return _multiplied(inputs, _unfolded(inputs))


def _in_fp32(inputs: PatchInputs) -> PatchInputs:
    return inputs.cast(torch.float32)


def _float_pixels(inputs: PatchInputs) -> PatchInputs:
    return replace(inputs, pixels=_normalised(inputs), mean=None, std=None)


def _part(name: str, about: str, run: Callable[..., list[Tensor]], prepare: Callable[..., Tensor]) -> Provider:
    return Provider(
        f"torch-part-{name}",
        lambda state: run(*state),
        setup=lambda inputs: (inputs, prepare(inputs)),
        about=about,
        yardstick=True,
    )


def providers(dtype: str, device: torch.device) -> list[Provider]:
    """Ours from uint8 and from float32 pixels, PyTorch's forms, and the parts of those."""
    ours = kernel_providers("patch_embed", device, _kernel)
    of_floats = [
        replace(provider, name=f"{provider.name}-fp32-pixels", setup=_float_pixels, about="from normalised float32")
        for provider in ours
        if provider.name != "jk-reference"
    ]

    def cast(inputs: PatchInputs) -> Tensor:
        return _normalised(inputs).to(inputs.weight.dtype)

    found = [
        *ours,
        *of_floats,
        Provider("torch-conv", _conv, about="the official form, in the dtype of the case"),
        Provider("torch-conv-channels-last", _conv_channels_last, about="the same, pixels left in the decoder's order"),
        Provider("torch-unfold-linear", _unfold_linear, about="kept patches only, one matrix product"),
        _part("conv", "convolution and gather, pixels normalised ahead", _convolved, cast),
        _part("linear", "the matrix product, rows unfolded ahead", _multiplied, _unfolded),
    ]
    if dtype == "bf16":
        found.append(Provider("torch-conv-fp32", _conv, _in_fp32, about="the official form in fp32"))
    return found
