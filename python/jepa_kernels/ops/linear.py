"""Products of linear layers in bfloat16 through `_cpu`, with the GELU between two of them; the rest stays with torch.

Weights are read as they lie at the time of the call, float32 ones converted while they are laid out for the product. So nothing
is kept between calls that could be out of date: official training loops write their target encoders through `.data`, which no
version counter sees.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import _native
from .plans import direct

# Fewer rows than this leave the time of a product to reading the weight, which torch does as well.
FEWEST_ROWS = 16
_LOW, _FULL = torch.bfloat16, torch.float32


def why_not(x: Tensor, *layers: nn.Linear) -> str | None:
    """None, or why the native bfloat16 products cannot run these layers, one after the other, on `x`."""
    if not _ready(x):
        return "the call is traced, transformed, or not on a CPU"
    dtype = _working_dtype(x)
    if dtype != _LOW:
        return f"the products are in {dtype}"
    if x.numel() < FEWEST_ROWS * x.shape[-1]:
        return "few rows"
    width = x.shape[-1]
    for layer in layers:
        reason = _layer_reason(layer, width)
        if reason is not None:
            return reason
        width = layer.weight.shape[0]
    if _native.why_no_cpu() is not None or _native.cpu().active_isa() != "avx512_bf16":
        return "this processor or build has no AVX512_BF16"
    return None


def _layer_reason(layer: nn.Linear, width: int) -> str | None:
    weight, bias = layer.weight, layer.bias
    parameters = [weight] if bias is None else [weight, bias]
    if any(type(p) not in (Tensor, nn.Parameter) or p.device.type != "cpu" or p.dtype not in (_LOW, _FULL) for p in parameters):
        return "a parameter is sharded, on another device, or neither float32 nor bfloat16"
    if weight.ndim != 2 or weight.shape[1] != width or not weight.is_contiguous() or weight.shape[0] % 16 or width % 16:
        return "a weight does not fit, is not contiguous, or is no multiple of 16 wide"
    if not torch.is_autocast_enabled("cpu") and any(parameter.dtype != _LOW for parameter in parameters):
        return "the parameters have another dtype than the input"
    return None


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """What `layer` computes, y = x W^T + b: (..., K) -> (..., N) in bfloat16. Ask `why_not` first."""
    rows = x.reshape(-1, x.shape[-1])
    run = _Linear.apply if torch.is_grad_enabled() else _product
    # The view is made out here: the caller may write into the result, which autograd forbids on a view that a Function returns.
    return run(rows, layer.weight, layer.bias).view(*x.shape[:-1], -1)


def linear_gelu(x: Tensor, layer: nn.Linear) -> Tensor:
    """The exact GELU of what `layer` computes; in one pass where no gradient is wanted. Ask `why_not` first."""
    if torch.is_grad_enabled():
        return F.gelu(linear(x, layer))
    return _product(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias, gelu=True).view(*x.shape[:-1], -1)


def mlp(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """second(gelu(first(x))), the GELU and its derivative in the epilogues of the products beside them. Ask `why_not` first."""
    rows = x.reshape(-1, x.shape[-1])
    run = _Mlp.apply if torch.is_grad_enabled() else _mlp
    return run(rows, first.weight, first.bias, second.weight, second.bias).view(*x.shape[:-1], -1)


def _ready(x: Any) -> bool:
    """Whether a call may go to native code: a plain tensor on a CPU, and nobody traces the call or stands in for its tensors."""
    return (
        direct()
        and type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.ndim > 1
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def _working_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled("cpu") and x.dtype in (_LOW, _FULL, torch.float16):
        return torch.get_autocast_dtype("cpu")
    return x.dtype


def _low(x: Tensor) -> Tensor:
    """A matrix in bfloat16, its rows contiguous."""
    return x.to(_LOW).contiguous()


def _full(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().to(_FULL).contiguous()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False, pre: Tensor | None = None) -> Tensor:
    """x W^T + b or its GELU, in bfloat16; `pre` receives the GELU's input."""
    x, bias = _low(x), _full(bias)  # held until the call has ended: views hold addresses alone
    y = x.new_empty((x.shape[0], weight.shape[0]))
    view = _native.view
    _native.cpu().linear_forward(view(x), view(weight), view(bias), gelu, view(pre), view(y), torch.get_num_threads())
    return y


def _mlp(x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None) -> Tensor:
    x, bias1, bias2 = _low(x), _full(bias1), _full(bias2)
    y = x.new_empty((x.shape[0], weight2.shape[0]))
    tensors = (x, weight1, bias1, weight2, bias2, y)
    _native.cpu().mlp_forward(*map(_native.view, tensors), torch.get_num_threads())
    return y


def _input_gradient(dy: Tensor, weight: Tensor, dtype: torch.dtype, pre: Tensor | None = None) -> Tensor:
    """dy W, times the GELU's derivative at `pre`."""
    dx = dy.new_empty((dy.shape[0], weight.shape[1]), dtype=dtype)
    _native.cpu().linear_input_gradient(*map(_native.view, (dy, weight, pre, dx)), torch.get_num_threads())
    return dx


def _parameter_gradients(
    needed: tuple[bool, bool], dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """dy^T x and the sum of dy's rows, each in the dtype of its parameter, or None where it is not needed."""
    if not needed[0]:
        return None, dy.sum(0, dtype=_FULL).to(bias.dtype) if needed[1] and bias is not None else None
    dweight = torch.empty_like(weight)
    sums = dy.new_empty(dy.shape[1], dtype=_FULL) if needed[1] else None
    _native.cpu().linear_weight_gradient(*map(_native.view, (dy, x, dweight, sums)), torch.get_num_threads())
    return dweight, None if sums is None or bias is None else sums.to(bias.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = _low(x)
        ctx.save_for_backward(rows, weight, bias)
        ctx.dtype = x.dtype
        return _product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        dy = _low(dy)
        dx = _input_gradient(dy, weight, ctx.dtype) if ctx.needs_input_grad[0] else None
        return (dx, *_parameter_gradients(ctx.needs_input_grad[1:], dy, x, weight, bias))


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None) -> Tensor:
        rows = _low(x)
        pre = rows.new_empty((rows.shape[0], weight1.shape[0]))
        hidden = _product(rows, weight1, bias1, gelu=True, pre=pre)
        ctx.save_for_backward(rows, pre, hidden, weight1, bias1, weight2, bias2)
        ctx.dtype = x.dtype
        return _product(hidden, weight2, bias2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, pre, hidden, weight1, bias1, weight2, bias2 = ctx.saved_tensors
        needed = ctx.needs_input_grad
        dy = _low(dy)
        second = _parameter_gradients(needed[3:], dy, hidden, weight2, bias2)
        if not any(needed[:3]):
            return (None, None, None, *second)
        dpre = _input_gradient(dy, weight2, _LOW, pre)
        first = _parameter_gradients(needed[1:3], dpre, x, weight1, bias1)
        return (_input_gradient(dpre, weight1, ctx.dtype) if needed[0] else None, *first, *second)
