"""Products of linear layers in bfloat16 through `_cpu`, with the GELU between two of them; the rest stays with torch.

Weights are read as they lie at the time of the call, float32 ones converted while they are laid out for the product. So nothing is
kept between calls that could be out of date: official training loops write their target encoders through `.data`, which no version
counter sees.
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
    """What `layer` computes: y = x W^T + b, (..., K) -> (..., N), in the dtype that autocast or the parameters give it."""
    weight, bias = layer.weight, layer.bias
    if why_not(x, layer) is None:
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
            return _Linear.apply(x, weight, bias)
        return _product(_rows(x), weight, bias).view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, layer: nn.Linear) -> Tensor:
    """The exact GELU of what `layer` computes; in one pass where no gradient is wanted."""
    if torch.is_grad_enabled() or why_not(x, layer) is not None:
        return F.gelu(linear(x, layer))
    return _product(_rows(x), layer.weight, layer.bias, gelu=True).view(*x.shape[:-1], -1)


def mlp(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """second(gelu(first(x))), with the GELU and its derivative in the epilogues of the products beside them."""
    if why_not(x, first, second) is not None:
        return linear(linear_gelu(x, first), second)
    if torch.is_grad_enabled():
        return _Mlp.apply(x, first.weight, first.bias, second.weight, second.bias)
    rows = _rows(x)
    y = rows.new_empty((rows.shape[0], second.weight.shape[0]))
    parameters = (first.weight, _bias(first.bias), second.weight, _bias(second.bias))
    _native.cpu().mlp_forward(*map(_native.view, (rows, *parameters, y)), torch.get_num_threads())
    return y.view(*x.shape[:-1], -1)


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


def _rows(x: Tensor) -> Tensor:
    """x as a contiguous bfloat16 matrix."""
    return x.to(_LOW).reshape(-1, x.shape[-1]).contiguous()


def _bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False, pre: Tensor | None = None) -> Tensor:
    """x W^T + b or its GELU, in bfloat16; `pre` receives the GELU's input."""
    y = x.new_empty((x.shape[0], weight.shape[0]))
    _native.cpu().linear_forward(*map(_native.view, (x, weight, _bias(bias))), gelu, *map(_native.view, (pre, y)), torch.get_num_threads())
    return y


def _input_gradient(dy: Tensor, weight: Tensor, dtype: torch.dtype, pre: Tensor | None = None) -> Tensor:
    """dy W, times the GELU's derivative at `pre`."""
    dx = dy.new_empty((dy.shape[0], weight.shape[1]), dtype=dtype)
    _native.cpu().linear_input_gradient(*map(_native.view, (dy, weight, pre, dx)), torch.get_num_threads())
    return dx


def _parameter_gradients(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """dy^T x and the sum of dy's rows, each in the dtype of its parameter."""
    dweight = torch.empty_like(weight)
    sums = None if bias is None else dy.new_empty(dy.shape[1], dtype=_FULL)
    _native.cpu().linear_weight_gradient(*map(_native.view, (dy, x, dweight, sums)), torch.get_num_threads())
    return dweight, None if sums is None or bias is None else sums.to(bias.dtype)


def _wanted(needed: tuple[bool, ...], dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of weight and bias, or None where they are not needed."""
    if not needed[0]:
        return None, dy.sum(0, dtype=_FULL).to(bias.dtype) if needed[1] and bias is not None else None
    dweight, dbias = _parameter_gradients(dy, x, weight, bias if needed[1] else None)
    return dweight, dbias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = _rows(x)
        ctx.save_for_backward(rows, weight, bias)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return _product(rows, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        dy = _rows(dy)
        dx = _input_gradient(dy, weight, ctx.dtype).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return (dx, *_wanted(ctx.needs_input_grad[1:], dy, x, weight, bias))


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None) -> Tensor:
        rows = _rows(x)
        pre = rows.new_empty((rows.shape[0], weight1.shape[0]))
        hidden = _product(rows, weight1, bias1, gelu=True, pre=pre)
        ctx.save_for_backward(rows, pre, hidden, weight1, bias1, weight2, bias2)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return _product(hidden, weight2, bias2).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, pre, hidden, weight1, bias1, weight2, bias2 = ctx.saved_tensors
        needed = ctx.needs_input_grad
        dy = _rows(dy)
        second = _wanted(needed[3:], dy, hidden, weight2, bias2)
        if not any(needed[:3]):
            return (None, None, None, *second)
        dpre = _input_gradient(dy, weight2, _LOW, pre)
        first = _wanted(needed[1:3], dpre, x, weight1, bias1)
        dx = _input_gradient(dpre, weight1, ctx.dtype).view(ctx.shape) if needed[0] else None
        return (dx, *first, *second)
