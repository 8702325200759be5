"""SIGReg, forward and backward, at the sizes of LeJEPA's library and of its minimal script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from .. import work as formulas
from ..providers import kernel_providers
from .base import DTYPES, Case, Provider, Setting, Work

POINTS = 17
T_MAX = 3.0


@dataclass(frozen=True)
class SigregInputs:
    """Embeddings (V, N, D) and directions (D, K): drawn ahead, so that all providers use the same."""

    x: Tensor
    directions: Tensor

    def cast(self, dtype: torch.dtype) -> SigregInputs:
        """The same inputs in another dtype."""
        return replace(self, x=self.x.detach().to(dtype).requires_grad_(), directions=self.directions.to(dtype))


def _inputs(sets: int, samples: int, dim: int, slices: int, dtype: torch.dtype, setting: Setting) -> SigregInputs:
    generator = setting.generator()
    x = torch.randn(sets, samples, dim, generator=generator).to(setting.device, dtype)
    directions = torch.randn(dim, slices, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(setting.device, dtype)
    return SigregInputs(x.requires_grad_(), directions)


def _work(inputs: SigregInputs) -> Work:
    sets, samples, dim = inputs.x.shape
    slices = inputs.directions.shape[1]
    return Work(
        formulas.sigreg_flops(sets, samples, dim, slices, POINTS),
        formulas.sigreg_bytes(sets, samples, dim, slices, value_bytes=inputs.x.element_size()),
        sets * samples,
        sets * samples,
    )


def _with_gradient(loss: Tensor, inputs: SigregInputs) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs.x)]


def _published_statistic(x: Tensor, directions: Tensor) -> Tensor:
    """Cosine and sine at every sample, slice and point, as published; only the projection is in x's dtype."""
    projected = (x @ directions).to(torch.promote_types(x.dtype, torch.float32))
    t = torch.linspace(0, T_MAX, POINTS, device=x.device, dtype=projected.dtype)
    step = T_MAX / (POINTS - 1)
    phi = torch.exp(-t.square() / 2)
    weights = torch.full_like(t, 2 * step)
    weights[0] = weights[-1] = step
    angles = projected.unsqueeze(-1) * t
    error = (angles.cos().mean(-3) - phi).square() + angles.sin().mean(-3).square()
    return ((error @ (weights * phi)) * x.shape[-2]).mean()


def _published(inputs: SigregInputs) -> list[Tensor]:
    return _with_gradient(_published_statistic(inputs.x, inputs.directions), inputs)


@lru_cache(maxsize=1)
def _compiled_statistic() -> Callable[..., Tensor]:
    return torch.compile(_published_statistic, dynamic=False)


def _compiled(inputs: SigregInputs) -> list[Tensor]:
    return _with_gradient(_compiled_statistic()(inputs.x, inputs.directions), inputs)


def _kernel(inputs: SigregInputs) -> list[Tensor]:
    import jepa_kernels as jk

    return _with_gradient(jk.sigreg(inputs.x, directions=inputs.directions, num_points=POINTS, t_max=T_MAX), inputs)


def _reference(inputs: SigregInputs) -> list[Tensor]:
    return _published(inputs.cast(torch.float64))


def _providers(device: torch.device) -> list[Provider]:
    return [
        *kernel_providers("sigreg", device, _kernel),
        Provider("torch-eager", _published, about="the published form"),
        Provider("torch-compile", _compiled, about="the published form, compiled"),
    ]


def _case(name: str, sets: int, samples: int, dim: int, slices: int, dtype: str, tags: set[str]) -> Case:
    return Case(
        operator="sigreg",
        name=f"{name}-{sets}x{samples}x{dim}-backward",
        dtype=dtype,
        shape={"sets": sets, "samples": samples, "dim": dim, "slices": slices, "points": POINTS},
        make_inputs=lambda setting: _inputs(sets, samples, dim, slices, DTYPES[dtype], setting),
        providers=_providers,
        work=_work,
        reference=_reference,
        low_precision=_published,
        peer="torch-eager",
        tags=frozenset(tags),
    )


def cases() -> list[Case]:
    """The SIGReg cases."""
    return [
        _case("lejepa", 1, 512, 64, 1024, "fp32", {"quick", "full"}),
        _case("lejepa-minimal", 4, 256, 16, 256, "fp32", {"full"}),
        _case("lejepa", 1, 512, 512, 1024, "fp32", {"full"}),
        _case("lejepa", 8, 256, 512, 1024, "fp32", {"full"}),
        _case("lejepa", 8, 256, 512, 1024, "bf16", {"full"}),
    ]
