"""Patch embedding from uint8 video or images: all tokens, or the tenth that a context mask keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import work as formulas
from .base import DTYPES, Case, Setting, Work
from .masks import keep_block
from .patch_embed_forms import MEAN, STD, PatchInputs, providers


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
    backward: bool = False

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along frame, row and column."""
        side = self.size // self.patch
        return (self.frames // self.tubelet if self.tubelet else 1), side, side

    @property
    def patch_values(self) -> int:
        return 3 * max(self.tubelet, 1) * self.patch**2


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
    frames, height, width = shape.grid
    tokens = keep.shape[1] if keep is not None else frames * height * width
    grad = torch.randn(shape.batch, tokens, shape.dim, generator=generator) if shape.backward else None
    return PatchInputs(
        pixels,
        weight.to(setting.device, dtype).requires_grad_(shape.backward),
        bias.to(setting.device, dtype).requires_grad_(shape.backward),
        keep,
        torch.tensor(MEAN, device=setting.device),
        torch.tensor(STD, device=setting.device),
        shape.grid,
        None if grad is None else grad.to(setting.device, dtype),
    )


def _work(shape: Shape, inputs: PatchInputs) -> Work:
    frames, height, width = shape.grid
    tokens = inputs.keep.numel() if inputs.keep is not None else shape.batch * frames * height * width
    size = inputs.weight.element_size()
    flops = formulas.patch_embed_flops(tokens, shape.patch_values, shape.dim)
    moved = formulas.patch_embed_bytes(
        tokens, shape.patch_values, shape.dim, pixel_bytes=1, weight_bytes=size, out_bytes=size
    )
    # The weight gradient: as many FLOPs, the pixels and the tokens' gradients read, the gradient written.
    return Work(flops * (2 if shape.backward else 1), moved * (2 if shape.backward else 1), shape.batch, tokens)


def _twin(inputs: PatchInputs) -> list[Tensor]:
    from ... import reference

    out = reference.patch_embed(
        inputs.pixels, inputs.weight, inputs.bias, keep=inputs.keep, mean=inputs.mean, std=inputs.std
    )
    return inputs.with_gradients(out)


def _double(inputs: PatchInputs) -> list[Tensor]:
    assert inputs.mean is not None and inputs.std is not None
    return _twin(replace(inputs.cast(torch.float64), mean=inputs.mean.double(), std=inputs.std.double()))


def make_case(name: str, shape: Shape, dtype: str, tags: set[str]) -> Case:
    """One patch-embedding case; the name gains its masking, its batch, and `fwd-wgrad` with the weight gradient."""
    kind = "dense" if shape.kept == 1 else f"masked{round(100 - 100 * shape.kept)}"
    fields = ("batch", "frames", "size", "patch", "tubelet", "dim", "kept", "backward")
    return Case(
        operator="patch_embed",
        name=f"{name}-{kind}-b{shape.batch}{'-fwd-wgrad' if shape.backward else ''}",
        dtype=dtype,
        shape={key: getattr(shape, key) for key in fields},
        make_inputs=lambda setting: _inputs(shape, DTYPES[dtype], setting),
        providers=lambda device: providers(dtype, device),
        work=lambda inputs: _work(shape, inputs),
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
        make_case("vjepa2-vitl-16f", replace(vitl, backward=True), "bf16", every),
        make_case("ijepa-vith14", vith, "bf16", every),
        make_case("vjepa2-vitl-16f", replace(masked, backward=True), "bf16", {"full"}),
        make_case("vjepa2-vitl-16f", replace(vitl, batch=8), "bf16", {"full"}),
        make_case("vjepa2-vitl-16f", replace(masked, batch=8), "bf16", {"full"}),
        make_case("ijepa-vith14", replace(vith, batch=32), "bf16", {"full"}),
    ]
