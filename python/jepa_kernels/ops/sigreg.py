"""The operators `unit_directions`, `sigreg` and `sigreg_statistic`: schemas, fakes, autograd and backends.

`sigreg` takes x (V, N, D) and directions (D, K) of one dtype and returns sums (V, 2, T, K): over the N samples, the
cosine at [:, 0] and the sine at [:, 1] of t[j] * (x @ directions), t = linspace(0, t_max, T), in float32 (float64 for
float64). Projections are made block by block, forward and again backward, and are not kept. `sigreg_statistic` goes on
from the sums to the value. Whoever asks for its gradient gets it in the same call, while the projections are at hand:
the backward pass only scales it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _native, backends
from ..reference.sigreg import characteristic_gradient, characteristic_sums
from ..reference.sigreg import quadrature as draw_quadrature
from ..reference.sigreg import unit_directions as draw_directions
from ._library import define
from .plans import bystanders
from .registry import Backend, Operator, register

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MAX_TRITON_POINTS = 33  # two sums a point live in each thread's registers
_BLOCK_ELEMENTS = 1 << 24  # projections that exist at a time on a GPU: enough to fill it


def sums_dtype(x: Tensor) -> torch.dtype:
    """What the sums are returned in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _supports_reference(x, directions, num_points, t_max) -> str | None:
    return None


def _supports_cpu(x, directions, num_points, t_max) -> str | None:
    if x.device.type != "cpu":
        return f"cpu kernels need CPU tensors, got {x.device}"
    return _native.why_no_cpu()


def _supports_triton(x, directions, num_points, t_max) -> str | None:
    if x.dtype == torch.float64:
        return "the triton kernel computes in float32; float64 tensors run on the reference or cpu backend"
    if num_points > MAX_TRITON_POINTS:
        return f"the triton kernel takes at most {MAX_TRITON_POINTS} points, got {num_points}"
    return backends.why_no_triton(x.device, (x.dtype,))


def _step(num_points: int, t_max: float) -> float:
    return t_max / (num_points - 1)


def _cpu_forward(x, directions, num_points, t_max) -> Tensor:
    sums = x.new_empty((x.shape[0], 2, num_points, directions.shape[1]), dtype=sums_dtype(x))
    views = [_native.view(tensor) for tensor in (x.contiguous(), directions.contiguous(), sums)]
    _native.cpu().sigreg_forward(*views, _step(num_points, t_max), torch.get_num_threads())
    return sums


def _cpu_backward(grad, x, directions, num_points, t_max) -> Tensor:
    gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
    views = [_native.view(tensor) for tensor in (grad.contiguous(), x.contiguous(), directions.contiguous(), gradient)]
    _native.cpu().sigreg_backward(*views, _step(num_points, t_max), torch.get_num_threads())
    return gradient


def _cpu_fit(x, directions, num_points, t_max) -> tuple[Tensor, Tensor]:
    dtype = sums_dtype(x)
    gradient = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    fixed = quadrature(num_points, t_max, dtype, x.device)
    views = [_native.view(tensor) for tensor in (x.contiguous(), directions.contiguous(), *fixed, gradient)]
    value = _native.cpu().sigreg_fit(*views, _step(num_points, t_max), torch.get_num_threads())
    return torch.tensor(value, dtype=dtype), gradient


def _triton_forward(x, directions, num_points, t_max) -> Tensor:
    """The sums of blocks of slices, whose projections exist one block at a time."""
    from ..kernels import sigreg as kernel

    slices, rows = directions.shape[1], x.shape[0] * x.shape[1]
    sums = x.new_empty((x.shape[0], 2, num_points, slices), dtype=sums_dtype(x))
    width = max(_BLOCK_ELEMENTS // rows // kernel.BLOCK, 1) * kernel.BLOCK
    for begin in range(0, slices, width):
        projected = torch.matmul(x, directions[:, begin : begin + width])
        kernel.forward(projected, sums[..., begin : begin + width], _step(num_points, t_max))
    return sums


def _triton_backward(grad, x, directions, num_points, t_max) -> Tensor:
    """The gradient of blocks of samples: each row of it comes from one matrix product."""
    from ..kernels import sigreg as kernel

    gradient, grad = torch.empty_like(x, memory_format=torch.contiguous_format), grad.contiguous()
    for sets, samples in _blocks_of_samples(x, max(_BLOCK_ELEMENTS // directions.shape[1], 1)):
        projected = torch.matmul(x[sets, samples], directions)
        kernel.backward(grad[sets], projected, _step(num_points, t_max))
        torch.matmul(projected, directions.t(), out=gradient[sets, samples])
    return gradient


def _blocks_of_samples(x: Tensor, rows: int) -> Iterator[tuple[slice, slice]]:
    """Covers x by blocks of at most `rows` samples: whole sets if one fits, else parts of one set."""
    sets, samples = x.shape[:2]
    together, part = max(rows // samples, 1), min(rows, samples)
    for first in range(0, sets, together):
        for begin in range(0, samples, part):
            yield slice(first, first + together), slice(begin, begin + part)


OPERATOR = register(
    Operator(
        "sigreg",
        {
            "reference": Backend(
                "reference", _supports_reference, {"forward": characteristic_sums, "backward": characteristic_gradient}
            ),
            "cpu": Backend("cpu", _supports_cpu, {"forward": _cpu_forward, "backward": _cpu_backward, "fit": _cpu_fit}),
            "triton": Backend("triton", _supports_triton, {"forward": _triton_forward, "backward": _triton_backward}),
        },
        dtypes={"reference": (torch.float64, *_FLOATS), "cpu": (torch.float64, *_FLOATS), "triton": _FLOATS},
    )
)


def _forward(x: Tensor, directions: Tensor, num_points: int, t_max: float) -> Tensor:
    arguments = (x, directions, num_points, t_max)
    return backends.resolve(OPERATOR, x.device, arguments).functions["forward"](*arguments)


def _fake_forward(x: Tensor, directions: Tensor, num_points: int, t_max: float) -> Tensor:
    return x.new_empty((x.shape[0], 2, num_points, directions.shape[1]), dtype=sums_dtype(x))


def _backward(grad: Tensor, x: Tensor, directions: Tensor, num_points: int, t_max: float) -> Tensor:
    arguments = (x, directions, num_points, t_max)
    return backends.resolve(OPERATOR, x.device, arguments).functions["backward"](grad, *arguments)


def _fake_backward(grad: Tensor, x: Tensor, directions: Tensor, num_points: int, t_max: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def quadrature(num_points: int, t_max: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """phi and the weights (T,) at the points."""
    if torch.compiler.is_compiling():
        return draw_quadrature(num_points, t_max, dtype, device)[1:]
    return _cached_quadrature(num_points, t_max, dtype, device)


@functools.lru_cache(maxsize=64)
def _cached_quadrature(
    num_points: int, t_max: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Made on the device once: a dozen launches a call otherwise."""
    with torch.inference_mode(False):
        return draw_quadrature(num_points, t_max, dtype, device)[1:]


def _statistic(
    x: Tensor, directions: Tensor, num_points: int, t_max: float, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """The value, and its gradient with respect to x in the dtype of the sums, or an empty tensor."""
    arguments = (x, directions, num_points, t_max)
    functions = backends.resolve(OPERATOR, x.device, arguments).functions
    if with_gradient and "fit" in functions:
        return functions["fit"](*arguments)
    sums = functions["forward"](*arguments)
    phi, weights = quadrature(num_points, t_max, sums.dtype, sums.device)
    count, columns = x.shape[1], sums.shape[0] * sums.shape[3]
    error = sums.div_(count)
    error[:, 0] -= phi.unsqueeze(1)
    of_sums = error * (2 / columns * weights).unsqueeze(1)
    value = torch.dot(of_sums.flatten(), error.flatten()) * (count / 2)
    if not with_gradient:
        return value, sums.new_empty(0)
    return value, functions["backward"](of_sums, *arguments).to(sums.dtype)


def _fake_statistic(
    x: Tensor, directions: Tensor, num_points: int, t_max: float, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    dtype = sums_dtype(x)
    return x.new_empty((), dtype=dtype), x.new_empty(x.shape if with_gradient else (0,), dtype=dtype)


def _statistic_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], inputs[0])


def _statistic_autograd(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    gradient = None
    if grad is not None and ctx.needs_input_grad[0]:
        whole, x = ctx.saved_tensors
        # The operator stands in the graph of a second derivative, which it refuses.
        gradient = _sigreg_scaled(whole, grad, x) if torch.is_grad_enabled() else (whole * grad).to(x.dtype)
    return gradient, None, None, None, None


def _scaled(gradient: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    return (gradient * grad).to(x.dtype)


def _fake_scaled(gradient: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(gradient, dtype=x.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, directions, ctx.num_points, ctx.t_max = inputs
    ctx.save_for_backward(x, directions)
    ctx.backend = backends.forced_by_context()


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradient = None
    if ctx.needs_input_grad[0]:
        with backends.reentered(ctx.backend):
            gradient = _sigreg_backward(grad, *ctx.saved_tensors, ctx.num_points, ctx.t_max)
    return gradient, None, None, None


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("sigreg: second derivatives are not implemented; use jk.reference.sigreg for them")


def _fake_directions(like: Tensor, num_slices: int, seed: Tensor | None) -> Tensor:
    return like.new_empty((like.shape[-1], num_slices), dtype=sums_dtype(like))


_sigreg_backward = define(
    "sigreg_backward(Tensor grad, Tensor x, Tensor directions, SymInt num_points, float t_max) -> Tensor",
    _backward,
    _fake_backward,
    backward=_no_second_derivative,
)
sigreg = define(
    "sigreg(Tensor x, Tensor directions, SymInt num_points, float t_max) -> Tensor",
    _forward,
    _fake_forward,
    backward=_autograd,
    setup_context=_setup_context,
)
_sigreg_scaled = define(
    "sigreg_scaled(Tensor gradient, Tensor grad, Tensor x) -> Tensor",
    _scaled,
    _fake_scaled,
    backward=_no_second_derivative,
)
sigreg_statistic = define(
    "sigreg_statistic(Tensor x, Tensor directions, SymInt num_points, float t_max, bool with_gradient) -> "
    "(Tensor value, Tensor gradient)",
    _statistic,
    _fake_statistic,
    backward=_statistic_autograd,
    setup_context=_statistic_context,
)
# An operator of its own, so that a compiled graph can hold the generator; without a seed it draws from torch's default
# one.
unit_directions = define(
    "unit_directions(Tensor like, SymInt num_slices, Tensor? seed) -> Tensor",
    draw_directions,
    _fake_directions,
    tags=(torch.Tag.nondeterministic_seeded,),
)


class _Statistic(torch.autograd.Function):
    """The gradient of `sigreg_statistic` recorded without the dispatcher, which takes a tenth of the time of a small call."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, directions: Tensor, num_points: int, t_max: float) -> Tensor:
        value, gradient = _statistic(x, directions, num_points, t_max, True)
        ctx.save_for_backward(gradient, x)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _statistic_autograd(ctx, grad, None)[:4]


def statistic(x: Tensor, directions: Tensor, num_points: int, t_max: float) -> Tensor:
    """The value, differentiable with respect to x."""
    wanted = torch.is_grad_enabled() and x.requires_grad
    if bystanders(x, directions):
        return sigreg_statistic(x, directions, num_points, t_max, wanted)[0]
    if wanted:
        return _Statistic.apply(x, directions, num_points, t_max)
    return _statistic(x, directions, num_points, t_max, False)[0]
