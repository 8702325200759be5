"""The operator `jepa_loss`: schema, fake, autograd and backends.

`pred` is (R, D) and `target` (T, D), last strides 1; `rows` names the target row of each prediction, -1 for padding and
below for an id that was out of range (None: row r is r); `weights` (R,), `norm_weight` and `norm_bias` (D,) are
float32, or float64 where pred or target is. `norm_eps` and `eps` are None where the affine and the parameter-free layer
norm are left out. `kind` is absolute, smooth_l1, square or power; `parameter` its beta, factor or exponent. The result
is `scale` times the weighted sum over all elements.

`loss` is what `functional` calls: where a gradient is wanted and the backend makes both in one pass, forward makes it for
an incoming gradient of 1, which is what `loss.backward()` brings, and backward hands it out. Any other is computed from the
inputs, so that the numbers are the same either way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _native, backends
from ..reference.jepa_loss import gradient_of_rows, loss_of_rows
from ._library import define
from .plans import direct, native_values
from .registry import Backend, Operator, register

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("absolute", "smooth_l1", "square", "power")  # places are the codes of csrc/include/jepa/jepa_loss.h
MAX_TRITON_WIDTH = 16384  # a row lives in the registers of one program


def exact_dtype(pred: Tensor, target: Tensor) -> torch.dtype:
    """What the loss is computed and returned in."""
    return torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32


def _supports_reference(
    pred, target, rows, weights, norm_weight, norm_bias, norm_eps, kind, parameter, eps, scale
) -> str | None:
    return None


def _supports_cpu(
    pred, target, rows, weights, norm_weight, norm_bias, norm_eps, kind, parameter, eps, scale
) -> str | None:
    if pred.device.type != "cpu":
        return f"cpu kernels need CPU tensors, got {pred.device}"
    return _native.why_no_cpu()


def _supports_triton(
    pred, target, rows, weights, norm_weight, norm_bias, norm_eps, kind, parameter, eps, scale
) -> str | None:
    if torch.float64 in (pred.dtype, target.dtype):
        return "the triton kernel computes in float32; float64 tensors run on the reference or cpu backend"
    if pred.shape[1] > MAX_TRITON_WIDTH:
        return f"the triton kernel takes rows of at most {MAX_TRITON_WIDTH} channels, got {pred.shape[1]}"
    return backends.why_no_triton(pred.device, (pred.dtype, target.dtype))


def _native_options(norm_eps: float | None, kind: str, parameter: float, eps: float | None, scale: float) -> Any:
    return _native.cpu().JepaLossOptions(
        kind=KINDS.index(kind),
        parameter=parameter,
        normalize=eps is not None,
        eps=eps or 0.0,
        affine=norm_eps is not None,
        affine_eps=norm_eps or 0.0,
        scale=scale,
        num_threads=torch.get_num_threads(),
    )


def _cpu_forward(pred, target, rows, weights, norm_weight, norm_bias, norm_eps, kind, parameter, eps, scale) -> Tensor:
    loss = pred.new_empty((), dtype=exact_dtype(pred, target))
    views = [_native.view(tensor) for tensor in (pred, target, rows, weights, norm_weight, norm_bias, loss)]
    _native.cpu().jepa_loss_forward(*views, _native_options(norm_eps, kind, parameter, eps, scale))
    return loss


def _cpu_fit(
    pred, target, rows, weights, norm_weight, norm_bias, norm_eps, kind, parameter, eps, scale
) -> tuple[Tensor, Tensor]:
    loss = pred.new_empty((), dtype=exact_dtype(pred, target))
    gradient = torch.empty_like(pred, memory_format=torch.contiguous_format)
    views = [_native.view(tensor) for tensor in (pred, target, rows, weights, norm_weight, norm_bias, loss, gradient)]
    _native.cpu().jepa_loss_fit(*views, _native_options(norm_eps, kind, parameter, eps, scale))
    return loss, gradient


def _cpu_backward(
    grad, pred, target, rows, weights, norm_weight, norm_bias, norm_eps, kind, parameter, eps, scale
) -> Tensor:
    gradient = torch.empty_like(pred, memory_format=torch.contiguous_format)
    views = [_native.view(tensor) for tensor in (grad, pred, target, rows, weights, norm_weight, norm_bias, gradient)]
    _native.cpu().jepa_loss_backward(*views, _native_options(norm_eps, kind, parameter, eps, scale))
    return gradient


def _triton_forward(
    pred, target, rows, weights, norm_weight, norm_bias, norm_eps, kind, parameter, eps, scale
) -> Tensor:
    from ..kernels import jepa_loss as kernel

    return (
        kernel.forward(pred, target, rows, weights, norm_weight, norm_bias, norm_eps, kind, parameter, eps).sum()
        * scale
    )


def _triton_backward(
    grad, pred, target, rows, weights, norm_weight, norm_bias, norm_eps, kind, parameter, eps, scale
) -> Tensor:
    from ..kernels import jepa_loss as kernel

    gradient = torch.empty_like(pred, memory_format=torch.contiguous_format)
    kernel.backward(
        grad, gradient, pred, target, rows, weights, norm_weight, norm_bias, norm_eps, kind, parameter, eps, scale
    )
    return gradient


OPERATOR = register(
    Operator(
        "jepa_loss",
        {
            "reference": Backend(
                "reference", _supports_reference, {"forward": loss_of_rows, "backward": gradient_of_rows}
            ),
            "cpu": Backend("cpu", _supports_cpu, {"forward": _cpu_forward, "backward": _cpu_backward, "fit": _cpu_fit}),
            "triton": Backend("triton", _supports_triton, {"forward": _triton_forward, "backward": _triton_backward}),
        },
        dtypes={"reference": (torch.float64, *_FLOATS), "cpu": (torch.float64, *_FLOATS), "triton": _FLOATS},
    )
)


def _check_rows(rows: Tensor | None) -> None:
    """Under torch.compile `functional` sees no values, so the last look at the ids is here."""
    if rows is not None and rows.device.type == "cpu" and bool((rows < -1).any()):
        raise ValueError(f"jepa_loss: id {int((rows < -1).nonzero()[0])}, counted over all of ids, is out of range")


def _forward(*arguments: Any) -> Tensor:
    pred, _, rows = arguments[:3]
    _check_rows(rows)
    return backends.resolve(OPERATOR, pred.device, arguments).functions["forward"](*arguments)


def _fake_forward(pred: Tensor, target: Tensor, *rest: Any) -> Tensor:
    return pred.new_empty((), dtype=exact_dtype(pred, target))


def _backward(grad: Tensor, *arguments: Any) -> Tensor:
    return backends.resolve(OPERATOR, arguments[0].device, arguments).functions["backward"](grad, *arguments)


def _fake_backward(grad: Tensor, pred: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(pred, memory_format=torch.contiguous_format)


def _fit(*arguments: Any) -> tuple[Tensor, Tensor]:
    return backends.resolve(OPERATOR, arguments[0].device, arguments).functions["fit"](*arguments)


def _fake_fit(pred: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _fake_forward(pred, target), torch.empty_like(pred, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]
    ctx.backend = backends.forced_by_context()


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradient = None
    if ctx.needs_input_grad[0]:
        with backends.reentered(ctx.backend):
            gradient = _jepa_loss_backward(grad, *ctx.saved_tensors, *ctx.options)
    return gradient, *[None] * 10


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("jepa_loss: second derivatives are not implemented; use jk.reference.jepa_loss for them")


_ARGUMENTS = (
    "Tensor pred, Tensor target, Tensor? rows, Tensor? weights, Tensor? norm_weight, Tensor? norm_bias, "
    "float? norm_eps, str kind, float parameter, float? eps, float scale"
)
_jepa_loss_backward = define(
    f"jepa_loss_backward(Tensor grad, {_ARGUMENTS}) -> Tensor",
    _backward,
    _fake_backward,
    backward=_no_second_derivative,
)
jepa_loss = define(
    f"jepa_loss({_ARGUMENTS}) -> Tensor", _forward, _fake_forward, backward=_autograd, setup_context=_setup_context
)
_jepa_loss_fit = define(f"jepa_loss_fit({_ARGUMENTS}) -> (Tensor loss, Tensor gradient)", _fit, _fake_fit)


class _Fit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        output, ctx.gradient = _jepa_loss_fit(*arguments)
        _setup_context(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None  # handed out once: whoever receives it may write into it
        ctx.saved_tensors  # noqa: B018  # raises where one was written since
        if gradient is not None and not torch.is_grad_enabled() and native_values(grad) and float(grad) == 1:
            return gradient, *[None] * 10
        del gradient
        return _autograd(ctx, grad)


def loss(*arguments: Any) -> Tensor:
    """The operator, differentiable with respect to pred."""
    if direct() and _in_one_pass(arguments):  # torch.compile traces no further than the first
        return _Fit.apply(*arguments)
    return jepa_loss(*arguments)


def _in_one_pass(arguments: tuple[Any, ...]) -> bool:
    pred = arguments[0]
    if not (torch.is_grad_enabled() and pred.requires_grad):
        return False
    if not native_values(*[argument for argument in arguments if isinstance(argument, Tensor)]):
        return False
    return "fit" in backends.resolve(OPERATOR, pred.device, arguments).functions
