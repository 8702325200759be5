"""The prediction loss, forward and backward, at the token counts of V-JEPA 2 and I-JEPA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from .. import work as formulas
from ..providers import kernel_providers
from .base import DTYPES, Case, Provider, Setting, Work


@dataclass(frozen=True)
class LossInputs:
    """Predictions (B, K, D), the target encoder's output (B, N, D) and the predicted ids (B, K)."""

    pred: Tensor
    target: Tensor
    ids: Tensor
    kind: str

    def cast(self, dtype: torch.dtype) -> LossInputs:
        """The same inputs in another dtype."""
        return replace(self, pred=self.pred.detach().to(dtype).requires_grad_(), target=self.target.to(dtype))


def _inputs(
    batch: int, tokens: int, kept: int, dim: int, kind: str, dtype: torch.dtype, setting: Setting
) -> LossInputs:
    generator = setting.generator()
    ids = torch.stack([torch.randperm(tokens, generator=generator)[:kept].sort().values for _ in range(batch)])
    pred = torch.randn(batch, kept, dim, generator=generator).to(setting.device, dtype)
    target = torch.randn(batch, tokens, dim, generator=generator).to(setting.device, dtype)
    ids = ids.to(setting.device)
    # The derivative of |d| jumps at 0, where rounding alone would decide its sign: keep every difference away from
    # there.
    h = functional.layer_norm(target.float(), (dim,)).gather(1, ids.unsqueeze(-1).expand(-1, -1, dim))
    pred = torch.where((pred - h).abs() < 0.03, pred + 0.25, pred)
    return LossInputs(pred.requires_grad_(), target, ids, kind)


def _work(inputs: LossInputs) -> Work:
    tokens, dim = inputs.ids.numel(), inputs.pred.shape[-1]
    return Work(
        formulas.jepa_loss_flops(tokens, dim, backward=True),
        formulas.jepa_loss_bytes(tokens, dim, value_bytes=inputs.pred.element_size(), backward=True),
        len(inputs.ids),
        tokens,
    )


def _with_gradient(loss: Tensor, inputs: LossInputs) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs.pred)]


def _official_loss(pred: Tensor, target: Tensor, ids: Tensor, kind: str) -> Tensor:
    """Norm of every token, gather with the index repeated over channels, subtract, penalise, average."""
    with torch.no_grad():
        h = functional.layer_norm(target, target.shape[-1:])
        h = torch.gather(h, 1, ids.unsqueeze(-1).repeat(1, 1, h.shape[-1]))
    if kind == "smooth_l1":
        return functional.smooth_l1_loss(pred, h)
    return torch.mean(torch.abs(pred - h) ** 1.0) / 1.0


def _official(inputs: LossInputs) -> list[Tensor]:
    return _with_gradient(_official_loss(inputs.pred, inputs.target, inputs.ids, inputs.kind), inputs)


@lru_cache(maxsize=1)
def _compiled_loss() -> Callable[..., Tensor]:
    return torch.compile(_official_loss, dynamic=False)


def _compiled(inputs: LossInputs) -> list[Tensor]:
    return _with_gradient(_compiled_loss()(inputs.pred, inputs.target, inputs.ids, inputs.kind), inputs)


def _kernel(inputs: LossInputs) -> list[Tensor]:
    import jepa_kernels as jk

    return _with_gradient(jk.jepa_loss(inputs.pred, inputs.target, inputs.ids, kind=inputs.kind), inputs)


def _reference(inputs: LossInputs) -> list[Tensor]:
    from ... import reference

    exact = inputs.cast(torch.float64)
    return _with_gradient(reference.jepa_loss(exact.pred, exact.target, exact.ids, kind=exact.kind), exact)


def _providers(device: torch.device) -> list[Provider]:
    return [
        *kernel_providers("jepa_loss", device, _kernel),
        Provider("torch-eager", _official, about="the official form"),
        Provider("torch-compile", _compiled, about="the official form, compiled"),
    ]


def _case(name: str, batch: int, tokens: int, kept: int, dim: int, kind: str, dtype: str, tags: set[str]) -> Case:
    return Case(
        operator="jepa_loss",
        name=f"{name}-b{batch}-backward",
        dtype=dtype,
        shape={"batch": batch, "tokens": tokens, "kept": kept, "dim": dim, "kind": kind},
        make_inputs=lambda setting: _inputs(batch, tokens, kept, dim, kind, DTYPES[dtype], setting),
        providers=_providers,
        work=_work,
        reference=_reference,
        low_precision=_official,
        peer="torch-eager",
        tags=frozenset(tags),
    )


def cases() -> list[Case]:
    """The loss cases."""
    return [
        _case("vjepa2-vitl", 2, 2048, 959, 1024, "l1", "fp32", {"quick", "full"}),
        _case("vjepa2-vitl", 24, 2048, 959, 1024, "l1", "fp32", {"full"}),
        _case("vjepa2-vitl", 24, 2048, 959, 1024, "l1", "bf16", {"full"}),
        _case("ijepa-vith14", 128, 256, 172, 1280, "smooth_l1", "fp32", {"full"}),
    ]
