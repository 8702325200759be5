"""`sigreg`: the sliced Epps-Pulley statistic of LeJEPA, without a tensor of samples x slices x points."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..collectives import all_reduce_sum
from ..ops.sigreg import quadrature, statistic, unit_directions
from ..ops.sigreg import sigreg as _operator

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def sigreg(
    x: Tensor,
    *,
    num_slices: int = 1024,
    num_points: int = 17,
    t_max: float = 3.0,
    seed: int | Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    directions: Tensor | None = None,
) -> Tensor:
    """How far the samples of x are from an isotropic standard normal, along random directions; add it to a loss.

    Formula: with unit columns a of A (D, K) and z = x A, the mean over leading axes and columns of
    `N * sum_j w[j] * ((mean_n cos(t[j] z) - phi[j])**2 + (mean_n sin(t[j] z))**2)`, where t = linspace(0, t_max,
    num_points), phi = exp(-t**2 / 2) and w = phi * 2 * step, half of that at both ends (the trapezoid rule on [-t_max,
    t_max]).

    Shapes: x (*, N, D), N samples of D features; each leading index, such as a view, is a set of its own. The result is
    a scalar.

    Dtypes: float32, float64, bfloat16 or float16. The projection is a matrix product in x's dtype (under autocast:
        autocast's, unless x is float64); angles, sums and the result are float32 (float64 for float64). The gradient
        has x's dtype.

    Args:
        seed: draws A = randn(D, K), columns normalised, from a generator with this seed on x's device: an integer or a
            0-d int64 CPU tensor, which torch.compile takes without recompiling. None draws from torch's default
            generator of the device. A CUDA graph can capture a draw from that one alone: there, pass no seed, or
            `directions`.
        group: the processes whose samples make up one set. Sums and counts are added over them, so shares of different
            size count as the joined batch does; the gradient crosses processes, and DDP's mean over ranks makes it that
            of the joined batch. Every rank must use the same directions, so a seed or `directions` is needed.
        directions: A itself (D, K), with unit columns, of any float dtype; excludes `seed`, and `num_slices` is not
            used.

    Raises:
        TypeError: x, seed or directions is of another type or dtype.
        ValueError: x has fewer than two axes or no sample or feature, num_points < 2, num_slices < 1, t_max not
            positive and finite, a group without seed or directions, directions of another shape or device, or that
            require grad.

    A single sample is allowed: the statistic is then that of one point mass. Features of zero variance give a finite
    value and gradient. Non-finite inputs make the result NaN. float32 angles t_max * |z| beyond 1e4 are exact on cpu
    and lose digits on triton.

    Cost: 2 * N * D * K FLOPs of matrix product for the value and as many for the gradient; 7 and 8 FLOPs a sample, slice
        and point. Where x requires grad, the gradient is made in the same call, kept in float32 and scaled by the
        backward pass. Bytes: x, A and that gradient. Projections exist 4 MiB or 512 slices' at a time on a CPU, 2**24
        on a GPU. There, and with a group, (2, num_points, K) sums are kept and projections made twice.

    Deterministic: yes, bit for bit, on cpu whatever the number of threads, and on triton, as far as the matrix product
    is.

    Source: Balestriero and LeCun, LeJEPA (2025); Epps and Pulley (1983).

    Example:
        >>> import torch, jepa_kernels as jk
        >>> normal = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
        >>> collapsed = torch.zeros(512, 16)
        >>> bool(jk.sigreg(normal, seed=0) < 2), bool(jk.sigreg(collapsed, seed=0) > 100)
        (True, True)
    """
    arguments = prepare(
        x, num_slices=num_slices, num_points=num_points, t_max=t_max, seed=seed, group=group, directions=directions
    )
    if directions is None:
        drawn = unit_directions(x.detach(), num_slices, torch.tensor(seed) if isinstance(seed, int) else seed)
        arguments["directions"] = drawn.to(arguments["x"].dtype)
    if group is None:
        return statistic(**arguments)
    sums, count = _joined(_operator(**arguments), x.shape[-2], group)  # [V, 2, T, K]
    return _statistic(sums, count, num_points, t_max)


def prepare(
    x: Tensor,
    *,
    num_slices: int = 1024,
    num_points: int = 17,
    t_max: float = 3.0,
    seed: int | Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    directions: Tensor | None = None,
) -> dict[str, Any]:
    """Checks the call and returns the operator's arguments, with room for directions that are still to be drawn."""
    _check_x(x)
    if num_slices < 1 or num_points < 2:
        raise ValueError(
            f"sigreg: num_slices must be at least 1 and num_points at least 2, got {num_slices} and {num_points}"
        )
    if not 0 < t_max < float("inf"):
        raise ValueError(f"sigreg: t_max must be positive and finite, got {t_max}")
    _check_seed(seed, directions, group)
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(kind))
    room = x.new_empty((x.shape[-1], num_slices)) if directions is None else _checked_directions(directions, x)
    return {
        "x": x.reshape(-1, *x.shape[-2:]),
        "directions": room,
        "num_points": num_points,
        "t_max": float(t_max),
    }


def _check_x(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"sigreg: x is {type(x).__name__}, not a tensor")
    if x.dtype not in _FLOATS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATS)
        raise TypeError(f"sigreg: x has dtype {x.dtype}; convert it to one of {names}")
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"sigreg: x has shape {tuple(x.shape)}; expected (*, N, D) with at least one sample and one feature"
        )


def _check_seed(seed: int | Tensor | None, directions: Tensor | None, group: dist.ProcessGroup | None) -> None:
    if seed is None and directions is None and group is not None:
        raise ValueError("sigreg: every rank of a group must use the same directions; pass a seed, such as the step")
    if seed is not None and directions is not None:
        raise ValueError("sigreg: pass seed or directions, not both")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.ndim != 0 or seed.device.type != "cpu":
            raise TypeError(
                f"sigreg: seed is a tensor of shape {tuple(seed.shape)}, {seed.dtype} on {seed.device}; expected 0-d "
                "int64 on the CPU, where reading it does not wait for a device"
            )
    elif seed is not None and not isinstance(seed, int | torch.SymInt):
        raise TypeError(f"sigreg: seed is {type(seed).__name__}; expected an integer, a tensor or None")


def _checked_directions(directions: Tensor, x: Tensor) -> Tensor:
    if not isinstance(directions, Tensor) or directions.dtype not in _FLOATS:
        found = directions.dtype if isinstance(directions, Tensor) else type(directions).__name__
        raise TypeError(f"sigreg: directions is {found}; expected a float tensor (D, K)")
    if (
        directions.ndim != 2
        or directions.shape[0] != x.shape[-1]
        or directions.shape[1] < 1
        or directions.device != x.device
    ):
        raise ValueError(
            f"sigreg: directions have shape {tuple(directions.shape)} on {directions.device}; expected "
            f"({x.shape[-1]}, K) on {x.device}"
        )
    if directions.requires_grad:
        raise ValueError(
            "sigreg: directions require grad, and no gradient is computed for them; pass directions.detach()"
        )
    return directions.to(x.dtype)


def _joined(sums: Tensor, samples: int, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Sums and number of samples over the group; the gradient is added over it, too."""
    count = sums.new_full((1,), samples)
    both = all_reduce_sum(torch.cat((sums.flatten(), count)), group)
    return both[:-1].view_as(sums), both[-1].detach()


def _statistic(sums: Tensor, count: Tensor, num_points: int, t_max: float) -> Tensor:
    phi, weights = quadrature(num_points, t_max, sums.dtype, sums.device)
    means = sums / count
    error = (means[:, 0] - phi.unsqueeze(1)).square() + means[:, 1].square()  # [V, T, K]
    # A sum and not a matrix product, which autocast would round.
    return (weights.unsqueeze(1) * error).sum(1).mean() * count
