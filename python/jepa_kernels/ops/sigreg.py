"""The operators `unit_directions` and `sigreg`: schemas, fakes, autograd and backends.

`sigreg` takes x (V, N, D) and directions (D, K) of one dtype and returns sums (V, 2, T, K): over the N samples, the
cosine at [:, 0] and the sine at [:, 1] of t[j] * (x @ directions), t = linspace(0, t_max, T), in float32 (float64 for
float64); and the projections (V, N, K), which the backward pass reads again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _native, backends
from ..reference.sigreg import characteristic_gradient, characteristic_sums
from ..reference.sigreg import unit_directions as draw_directions
from ._library import define
from .registry import Backend, Operator, register

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MAX_TRITON_POINTS = 33  # two sums a point live in each thread's registers


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


def _cpu_forward(x, directions, num_points, t_max) -> tuple[Tensor, Tensor]:
    projected = torch.matmul(x, directions)
    sums = x.new_empty((x.shape[0], 2, num_points, directions.shape[1]), dtype=sums_dtype(x))
    _native.cpu().sigreg_forward(
        _native.view(projected), _native.view(sums), _step(num_points, t_max), torch.get_num_threads()
    )
    return sums, projected


def _cpu_backward(grad, projected, directions, num_points, t_max) -> Tensor:
    gradient, grad = torch.empty_like(projected), grad.contiguous()
    views = [_native.view(tensor) for tensor in (grad, projected, gradient)]
    _native.cpu().sigreg_backward(*views, _step(num_points, t_max), torch.get_num_threads())
    return torch.matmul(gradient, directions.t())


def _triton_forward(x, directions, num_points, t_max) -> tuple[Tensor, Tensor]:
    from ..kernels import sigreg as kernel

    projected = torch.matmul(x, directions)
    return kernel.forward(projected, num_points, _step(num_points, t_max)), projected


def _triton_backward(grad, projected, directions, num_points, t_max) -> Tensor:
    from ..kernels import sigreg as kernel

    gradient = torch.empty_like(projected)
    kernel.backward(grad.contiguous(), projected, gradient, _step(num_points, t_max))
    return torch.matmul(gradient, directions.t())


OPERATOR = register(
    Operator(
        "sigreg",
        {
            "reference": Backend(
                "reference", _supports_reference, {"forward": characteristic_sums, "backward": characteristic_gradient}
            ),
            "cpu": Backend("cpu", _supports_cpu, {"forward": _cpu_forward, "backward": _cpu_backward}),
            "triton": Backend("triton", _supports_triton, {"forward": _triton_forward, "backward": _triton_backward}),
        },
        dtypes={"reference": (torch.float64, *_FLOATS), "cpu": (torch.float64, *_FLOATS), "triton": _FLOATS},
    )
)


def _forward(x: Tensor, directions: Tensor, num_points: int, t_max: float) -> tuple[Tensor, Tensor]:
    arguments = (x, directions, num_points, t_max)
    return backends.resolve(OPERATOR, x.device, arguments).functions["forward"](*arguments)


def _fake_forward(x: Tensor, directions: Tensor, num_points: int, t_max: float) -> tuple[Tensor, Tensor]:
    slices = directions.shape[1]
    return x.new_empty((x.shape[0], 2, num_points, slices), dtype=sums_dtype(x)), x.new_empty((*x.shape[:2], slices))


def _backward(grad: Tensor, projected: Tensor, directions: Tensor, num_points: int, t_max: float) -> Tensor:
    arguments = (projected, directions, num_points, t_max)
    return backends.resolve(OPERATOR, projected.device, arguments).functions["backward"](grad, *arguments)


def _fake_backward(grad: Tensor, projected: Tensor, directions: Tensor, num_points: int, t_max: float) -> Tensor:
    return projected.new_empty((*projected.shape[:2], directions.shape[0]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, directions, ctx.num_points, ctx.t_max = inputs
    ctx.save_for_backward(output[1], directions)
    ctx.backend = backends.forced_by_context()


def _autograd(ctx: Any, grad: Tensor, _of_projected: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient = None
    if ctx.needs_input_grad[0]:
        with backends.backend(ctx.backend):
            gradient = _sigreg_backward(grad, *ctx.saved_tensors, ctx.num_points, ctx.t_max)
    return gradient, None, None, None


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("sigreg: second derivatives are not implemented; use jk.reference.sigreg for them")


def _fake_directions(like: Tensor, num_slices: int, seed: Tensor | None) -> Tensor:
    return like.new_empty((like.shape[-1], num_slices), dtype=sums_dtype(like))


_sigreg_backward = define(
    "sigreg_backward(Tensor grad, Tensor projected, Tensor directions, SymInt num_points, float t_max) -> Tensor",
    _backward,
    _fake_backward,
    backward=_no_second_derivative,
)
sigreg = define(
    "sigreg(Tensor x, Tensor directions, SymInt num_points, float t_max) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    backward=_autograd,
    setup_context=_setup_context,
)
# An operator of its own, so that a compiled graph can hold the generator; without a seed it draws from torch's default
# one.
unit_directions = define(
    "unit_directions(Tensor like, SymInt num_slices, Tensor? seed) -> Tensor",
    draw_directions,
    _fake_directions,
    tags=(torch.Tag.nondeterministic_seeded,),
)
