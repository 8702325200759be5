"""EMA update of the target encoder: one tensor set of a real model, and one of many small tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import work as formulas
from ..providers import kernel_providers
from .base import Case, Provider, Setting, Work

MOMENTUM = 0.99925


@dataclass(frozen=True)
class EmaInputs:
    """fp32 targets, the online tensors they follow, and the momentum."""

    targets: list[Tensor]
    online: list[Tensor]
    momentum: float = MOMENTUM

    def fresh(self) -> EmaInputs:
        """The same values with targets of its own, because the update writes in place."""
        return EmaInputs([t.clone() for t in self.targets], self.online, self.momentum)


@dataclass(frozen=True)
class TargetState:
    """What `jk.EMATarget` keeps between steps."""

    target: Any


def vit_shapes(dim: int, depth: int, patch_values: int, mlp: int) -> list[tuple[int, ...]]:
    """Parameter shapes of a ViT encoder: patch embedding, blocks, final norm."""
    block: list[tuple[int, ...]] = [
        (dim,), (dim,), (3 * dim, dim), (3 * dim,), (dim, dim), (dim,),
        (dim,), (dim,), (mlp, dim), (mlp,), (dim, mlp), (dim,),
    ]  # fmt: skip
    return [(dim, patch_values), (dim,), *(block * depth), (dim,), (dim,)]


def _inputs(shapes: Sequence[tuple[int, ...]], setting: Setting) -> EmaInputs:
    generator = setting.generator()

    def draw() -> list[Tensor]:
        return [torch.randn(s, generator=generator).mul_(0.02).to(setting.device) for s in shapes]

    return EmaInputs(draw(), draw())


def _work(inputs: EmaInputs) -> Work:
    elements = sum(t.numel() for t in inputs.targets)
    return Work(formulas.ema_flops(elements), formulas.ema_bytes(elements), 1, elements)


def _reference(inputs: EmaInputs) -> list[Tensor]:
    from ... import reference

    targets = [t.double() for t in inputs.targets]
    reference.ema_update_(targets, [q.double() for q in inputs.online], inputs.momentum)
    return targets


def _foreach_lerp(inputs: EmaInputs) -> None:
    torch._foreach_lerp_(inputs.targets, inputs.online, 1 - inputs.momentum)


def _foreach_mul_add(inputs: EmaInputs) -> None:
    torch._foreach_mul_(inputs.targets, inputs.momentum)
    torch._foreach_add_(inputs.targets, inputs.online, alpha=1 - inputs.momentum)


def _loop(inputs: EmaInputs) -> None:
    for target, online in zip(inputs.targets, inputs.online, strict=True):
        target.mul_(inputs.momentum).add_((1.0 - inputs.momentum) * online)


def _kernel(inputs: EmaInputs) -> None:
    import jepa_kernels as jk

    jk.ema_update_(inputs.targets, inputs.online, inputs.momentum)


def _ema_target(inputs: EmaInputs) -> TargetState:
    """An `EMATarget` whose online and target tensors are those of the inputs."""
    import jepa_kernels as jk

    target = jk.EMATarget(nn.ParameterList(inputs.online), inputs.momentum)
    for ours, value in zip(target.targets, inputs.targets, strict=True):
        ours.copy_(value)
    return TargetState(target)


def _follow(state: TargetState) -> None:
    state.target.update()


def _followed(state: TargetState, _result: None) -> list[Tensor]:
    return list(state.target.targets)


def _targets(state: EmaInputs, _result: None) -> list[Tensor]:
    return state.targets


def _low_precision(inputs: EmaInputs) -> list[Tensor]:
    state = inputs.fresh()
    _foreach_mul_add(state)
    return state.targets


def _providers(device: torch.device) -> list[Provider]:
    def torch_form(name: str, run: object, about: str) -> Provider:
        return Provider(name, run, EmaInputs.fresh, outputs=_targets, about=about)  # type: ignore[arg-type]

    return [
        *kernel_providers("ema_update", device, _kernel, setup=EmaInputs.fresh, outputs=_targets),
        Provider("jk-EMATarget", _follow, _ema_target, outputs=_followed, about="automatic backend, tensors known beforehand"),
        torch_form("torch-foreach-mul-add", _foreach_mul_add, "the V-JEPA 2 form"),
        torch_form("torch-foreach-lerp", _foreach_lerp, "one pass over memory"),
        torch_form("torch-loop", _loop, "the I-JEPA form"),
    ]


def make_case(name: str, shapes: Sequence[tuple[int, ...]], tags: set[str]) -> Case:
    """One EMA case over tensors of these shapes."""
    elements = sum(int(torch.Size(s).numel()) for s in shapes)
    return Case(
        operator="ema_update",
        name=name,
        dtype="fp32",
        shape={"tensors": len(shapes), "elements": elements, "momentum": MOMENTUM},
        make_inputs=lambda setting: _inputs(shapes, setting),
        providers=_providers,
        work=_work,
        reference=_reference,
        low_precision=_low_precision,
        peer="torch-foreach-mul-add",
        tags=frozenset(tags),
    )


def cases() -> list[Case]:
    """The EMA cases."""
    return [
        make_case("vits16", vit_shapes(384, 12, 1536, 1536), {"quick", "full"}),
        make_case("400-small-tensors", [(384,), (1024,), (64, 48), (96, 96)] * 100, {"quick", "full"}),
        make_case("vitl-norms-and-biases", [s for s in vit_shapes(1024, 24, 1536, 4096) if len(s) == 1], {"quick", "full"}),
        make_case("vitb16", vit_shapes(768, 12, 1536, 3072), {"full"}),
        make_case("vjepa2-vitl", vit_shapes(1024, 24, 1536, 4096), {"full"}),
    ]
