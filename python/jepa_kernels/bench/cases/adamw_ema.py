"""One optimiser step with the target's update: AdamW, EMA, and bfloat16 copies of both models for the next forward
pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import work as formulas
from ..providers import kernel_providers
from .base import Case, Provider, Setting, Work
from .ema_update import MOMENTUM, vit_shapes

LR, WEIGHT_DECAY = 6e-4, 0.04


@dataclass(frozen=True)
class StepInputs:
    """fp32 parameters with gradients; targets start as copies of the parameters."""

    params: list[Tensor]
    grads: list[Tensor]

    def parameters(self) -> list[nn.Parameter]:
        """Parameters of its own for a provider, because the step writes in place; the gradients are shared and only
        read."""
        parameters = [nn.Parameter(p.clone()) for p in self.params]
        for parameter, grad in zip(parameters, self.grads, strict=True):
            parameter.grad = grad
        return parameters


@dataclass
class Training:
    """What a provider steps: parameters, their target, bfloat16 copies of both, and the optimiser."""

    parameters: list[nn.Parameter]
    targets: list[Tensor]
    copies: list[Tensor]
    target_copies: list[Tensor]
    step: Callable[[], Any]


def _inputs(shapes: Sequence[tuple[int, ...]], setting: Setting) -> StepInputs:
    generator = setting.generator()

    def draw(scale: float) -> list[Tensor]:
        return [torch.randn(s, generator=generator).mul_(scale).to(setting.device) for s in shapes]

    return StepInputs(draw(0.02), draw(1e-3))


def _work(inputs: StepInputs) -> Work:
    elements = sum(p.numel() for p in inputs.params)
    return Work(formulas.adamw_ema_flops(elements), formulas.adamw_ema_bytes(elements), 1, elements)


def _fused_training(inputs: StepInputs) -> Training:
    import jepa_kernels as jk

    holder = nn.ParameterList(inputs.parameters())
    target = jk.EMATarget(holder, MOMENTUM, shadow_dtype=torch.bfloat16)
    twins = {p: p.detach().to(torch.bfloat16) for p in holder}
    options: dict[str, Any] = {"lr": LR, "weight_decay": WEIGHT_DECAY, "skip_nonfinite": False}
    optimizer = jk.AdamWEMA(holder.parameters(), target=target, shadows=twins, **options)
    assert target.shadow is not None
    return Training(
        list(holder), target.targets, list(twins.values()), list(target.shadow.parameters()), optimizer.step
    )


def _torch_training(
    inputs: StepInputs, *, fused: bool, update: Callable[[list[Tensor], list[Tensor]], None]
) -> Training:
    parameters = inputs.parameters()
    targets = [p.detach().clone() for p in parameters]
    copies = [p.detach().to(torch.bfloat16) for p in parameters]
    target_copies = [p.clone() for p in copies]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY, fused=fused or None)

    def step() -> None:
        optimizer.step()
        with torch.no_grad():
            online = [p.detach() for p in parameters]
            update(targets, online)
            torch._foreach_copy_(copies, online)
            torch._foreach_copy_(target_copies, targets)

    return Training(parameters, targets, copies, target_copies, step)


def _lerp(targets: list[Tensor], online: list[Tensor]) -> None:
    torch._foreach_lerp_(targets, online, 1 - MOMENTUM)


def _mul_add(targets: list[Tensor], online: list[Tensor]) -> None:
    torch._foreach_mul_(targets, MOMENTUM)
    torch._foreach_add_(targets, online, alpha=1 - MOMENTUM)


def _strong(inputs: StepInputs) -> Training:
    return _torch_training(inputs, fused=True, update=_lerp)


def _official(inputs: StepInputs) -> Training:
    return _torch_training(inputs, fused=False, update=_mul_add)


def _run(training: Training) -> None:
    training.step()


def _outputs(training: Training, _result: None) -> list[Tensor]:
    return [*(p.detach() for p in training.parameters), *training.targets]


def _reference(inputs: StepInputs) -> list[Tensor]:
    from ... import reference

    params, targets = ([p.double() for p in inputs.params] for _ in range(2))
    options: dict[str, Any] = {"lr": LR, "weight_decay": WEIGHT_DECAY, "momentum": MOMENTUM}
    for param, target, grad in zip(params, targets, inputs.grads, strict=True):  # one by one: moments in float64 are large
        first, second, step = [torch.zeros_like(param)], [torch.zeros_like(param)], [torch.zeros((), device=param.device)]
        reference.adamw_ema_([param], [grad.double()], first, second, step, targets=[target], **options)
    return [*params, *targets]


def _low_precision(inputs: StepInputs) -> list[Tensor]:
    training = _official(inputs)
    training.step()
    return _outputs(training, None)


def _providers(device: torch.device) -> list[Provider]:
    return [
        *kernel_providers("adamw_ema", device, _run, setup=_fused_training, outputs=_outputs),
        Provider(
            "torch-foreach-v-jepa", _run, _official, outputs=_outputs, about="default AdamW, V-JEPA 2's EMA, casts"
        ),
        Provider("torch-fused-lerp", _run, _strong, outputs=_outputs, about="AdamW(fused=True), foreach lerp, casts"),
    ]


def make_case(name: str, shapes: Sequence[tuple[int, ...]], tags: set[str]) -> Case:
    """One optimiser step over tensors of these shapes."""
    elements = sum(int(torch.Size(s).numel()) for s in shapes)
    return Case(
        operator="adamw_ema",
        name=name,
        dtype="fp32",
        shape={"tensors": len(shapes), "elements": elements, "momentum": MOMENTUM},
        make_inputs=lambda setting: _inputs(shapes, setting),
        providers=_providers,
        work=_work,
        reference=_reference,
        low_precision=_low_precision,
        peer="torch-foreach-v-jepa",
        tags=frozenset(tags),
    )


def cases() -> list[Case]:
    """The optimiser cases."""
    return [
        make_case("vits16", vit_shapes(384, 12, 1536, 1536), {"quick", "full"}),
        make_case("vitb16", vit_shapes(768, 12, 1536, 3072), {"full"}),
        make_case("vjepa2-vitl", vit_shapes(1024, 24, 1536, 4096), {"full"}),
    ]
