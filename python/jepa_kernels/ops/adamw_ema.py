"""The operator `adamw_ema_`: schema, fake and backends.

Tensors that may be absent come as lists of full length in which an empty tensor stands for none. `hyper` is float64
(groups, 5): lr, beta1, beta2, eps, weight decay; `control` float64 (4,): momentum, largest gradient norm (infinity
for no clipping), scale of the gradients, found_inf; `squares` the sum of squares of the gradients, float64 (), or
empty where nobody needs it; `status` float64 (3,), written: gradient norm, whether this step was skipped, steps
skipped so far. All of them lie on the device of the parameters, so that a captured graph reads them anew at each
replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native, backends
from ..reference import adamw_ema as reference
from ._library import define
from .ema_update import _is_dense
from .registry import Backend, Operator, register

_GRADS = (torch.float32, torch.bfloat16, torch.float16)
_SHADOWS = (torch.bfloat16, torch.float16)
CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_


class Tensors(NamedTuple):
    """The lists of one step, all of one length; an empty tensor stands for none."""

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    exp_avgs: Sequence[Tensor]
    exp_avg_sqs: Sequence[Tensor]
    steps: Sequence[Tensor]
    targets: Sequence[Tensor]
    param_shadows: Sequence[Tensor]
    target_shadows: Sequence[Tensor]
    groups: Sequence[int]


class Scalars(NamedTuple):
    """Small tensors on the device of the parameters; see the head of this file."""

    hyper: Tensor
    control: Tensor
    squares: Tensor
    status: Tensor


def _why_not_native(tensors: Tensors) -> str | None:
    for index, param in enumerate(tensors.params):
        for name in ("params", "exp_avgs", "exp_avg_sqs", "targets", "steps"):
            tensor = getattr(tensors, name)[index]
            if tensor.numel() and tensor.dtype != torch.float32:
                return f"{name}[{index}] is {tensor.dtype}; native kernels keep all but gradients and shadows in float32"
        if tensors.grads[index].dtype not in _GRADS:
            return f"grads[{index}] is {tensors.grads[index].dtype}"
        if not _is_dense(param):
            return f"params[{index}] has gaps in memory (shape {tuple(param.shape)}, strides {param.stride()})"
        for name in ("exp_avgs", "exp_avg_sqs", "targets", "param_shadows", "target_shadows"):
            tensor = getattr(tensors, name)[index]
            if tensor.numel() and tensor.stride() != param.stride():
                return f"{name}[{index}] has strides {tensor.stride()}, its parameter {param.stride()}"
    return None


def _supports_reference(*arguments: Any) -> str | None:
    return None


def _supports_cpu(*arguments: Any) -> str | None:
    tensors = Tensors(*arguments[:9])
    if tensors.params[0].device.type != "cpu":
        return f"cpu kernels need CPU tensors, got {tensors.params[0].device}"
    return _native.why_no_cpu() or _why_not_native(tensors)


def _supports_triton(*arguments: Any) -> str | None:
    tensors = Tensors(*arguments[:9])
    dtypes = {
        tensor.dtype
        for group in (tensors.grads, tensors.param_shadows, tensors.target_shadows)
        for tensor in group
        if tensor.numel()
    }
    return backends.why_no_triton(tensors.params[0].device, tuple(dtypes)) or _why_not_native(tensors)


def _supports_cuda(*arguments: Any) -> str | None:
    tensors = Tensors(*arguments[:9])
    if tensors.params[0].device.type != "cuda":
        return f"cuda kernels need CUDA tensors, got {tensors.params[0].device}"
    return _native.why_no_cuda() or _why_not_native(tensors)


class Decision(NamedTuple):
    """What the small tensors mean for one step, as numbers on the host."""

    norm: float
    skip: bool
    grad_factor: float
    momentum: float


def decide(scalars: Scalars) -> Decision:
    """Reads the small tensors; on a GPU this waits for the device, so only the CPU and the reference do it."""
    momentum, max_norm, scale, found_inf = scalars.control.tolist()
    squares = float(scalars.squares) if scalars.squares.numel() else 0.0
    norm = math.sqrt(squares) / scale if squares >= 0 else math.nan
    skip = found_inf != 0 or not math.isfinite(norm)
    clip = min(1.0, max_norm / (norm + CLIP_EPS)) if math.isfinite(max_norm) and not skip else 1.0
    return Decision(norm, skip, clip / scale, momentum)


def report(scalars: Scalars, decision: Decision) -> None:
    """Writes the status of a step that was decided on the host."""
    scalars.status[:2] = torch.tensor([decision.norm, float(decision.skip)], dtype=torch.float64)
    scalars.status[2] += float(decision.skip)


class ReferencePlan:
    """A step by the reference; like every plan it takes new gradients by `set_grads`."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def set_grads(self, grads: Sequence[Tensor]) -> None:
        """Takes the gradients of the coming step."""
        self._tensors = self._tensors._replace(grads=grads)

    def sum_of_squares(self) -> Tensor:
        """Of the gradients, in float64."""
        return reference.sum_of_squares(self._tensors.grads)

    def update(self, scalars: Scalars) -> None:
        """The step itself."""
        decision = decide(scalars)
        report(scalars, decision)
        if decision.skip:
            return
        hyper = scalars.hyper.tolist()
        for param, grad, first, second, step, target, param_shadow, target_shadow, group in zip(
            *self._tensors, strict=True
        ):
            reference.update_one(
                param, grad, first, second, step, hyper=tuple(hyper[group]), grad_factor=decision.grad_factor
            )
            if target.numel():
                wide = torch.float64 if target.dtype == torch.float64 else torch.float32
                target.copy_(torch.lerp(target.to(wide), param.to(wide), 1.0 - decision.momentum))
            for shadow, value in ((param_shadow, param), (target_shadow, target)):
                if shadow.numel():
                    shadow.copy_(value)


class CpuPlan:
    """The native tensors of a step, kept from step to step; gradients may move in between."""

    def __init__(self, tensors: Tensors) -> None:
        self._params = tensors.params
        self._grads = like(tensors.params, tensors.grads)  # kept, so that copies live until the step is over
        lists = (tensors.params, self._grads, *tensors[2:8])
        addresses = [[tensor.data_ptr() for tensor in column] for column in lists]
        codes = [[_native.DTYPE_CODES[tensor.dtype] for tensor in column] for column in (self._grads, *tensors[6:8])]
        sizes = [param.numel() for param in tensors.params]
        self._native = _native.cpu().AdamWTensors(
            list(zip(*addresses, strict=True)), list(zip(sizes, *codes, tensors.groups, strict=True))
        )

    def set_grads(self, grads: Sequence[Tensor]) -> None:
        """Takes the gradients of the coming step, of the shapes of the first."""
        self._grads = like(self._params, grads)
        self._native.set_grads(
            [grad.data_ptr() for grad in self._grads], [_native.DTYPE_CODES[grad.dtype] for grad in self._grads]
        )

    def sum_of_squares(self) -> Tensor:
        """Of the gradients, in float64."""
        return torch.tensor(self._native.sum_of_squares(torch.get_num_threads()), dtype=torch.float64)

    def update(self, scalars: Scalars) -> None:
        """The step itself."""
        decision = decide(scalars)
        report(scalars, decision)
        if not decision.skip:
            self._native.update(
                scalars.hyper.tolist(), decision.momentum, decision.grad_factor, torch.get_num_threads()
            )
        # Only addresses stay: gradients kept until the next step would lie beside those that its backward pass makes.
        self._grads = []


def like(params: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """`others` in the memory order of `params`: those that differ are copied, so that kernels can walk flat memory."""
    return [
        other if other.stride() == param.stride() else torch.empty_like(param, dtype=other.dtype).copy_(other)
        for param, other in zip(params, others, strict=True)
    ]


def _plan_triton(tensors: Tensors) -> Any:
    from .adamw_ema_device import DevicePlan

    return DevicePlan(tensors, "triton")


def _plan_cuda(tensors: Tensors) -> Any:
    from .adamw_ema_device import DevicePlan

    return DevicePlan(tensors, "cuda")


def _backend(name: str, supports: Callable[..., str | None], plan: Callable[[Tensors], Any]) -> Backend:
    """A backend out of its plan: an object with `set_grads(grads)`, `sum_of_squares()` and `update(scalars)`."""

    def forward(*arguments: Any) -> None:
        tensors, scalars, need_norm = Tensors(*arguments[:9]), Scalars(*arguments[9:13]), arguments[13]
        prepared = plan(tensors)
        if need_norm and not scalars.squares.numel():
            scalars = scalars._replace(squares=prepared.sum_of_squares())
        prepared.update(scalars)

    return Backend(name, supports, {"forward": forward, "plan": plan})


OPERATOR = register(
    Operator(
        "adamw_ema",
        {
            "reference": _backend("reference", _supports_reference, ReferencePlan),
            "cpu": _backend("cpu", _supports_cpu, CpuPlan),
            "triton": _backend("triton", _supports_triton, _plan_triton),
            "cuda": _backend("cuda", _supports_cuda, _plan_cuda),
        },
        dtypes={
            "reference": (torch.float64, *_GRADS),
            "cpu": _GRADS,
            "triton": _GRADS,
            "cuda": _GRADS,
        },
    )
)


def _implementation(*arguments: Any) -> None:
    params = arguments[0]
    if params:
        backends.resolve(OPERATOR, params[0].device, arguments).functions["forward"](*arguments)


def _fake(*arguments: object) -> None:
    return None


adamw_ema_ = define(
    "adamw_ema_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] "
    "steps, "
    "Tensor(e!)[] targets, Tensor(f!)[] param_shadows, Tensor(g!)[] target_shadows, int[] groups, Tensor hyper, "
    "Tensor control, "
    "Tensor squares, Tensor(h!) status, bool need_norm) -> ()",
    _implementation,
    _fake,
)
