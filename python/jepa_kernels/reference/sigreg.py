"""SIGReg in plain PyTorch, as published: random directions, then the Epps-Pulley statistic along each."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..collectives import all_reduce_sum


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
    """The unfused twin of `jepa_kernels.sigreg`: same arguments, same result up to rounding, far more memory."""
    if directions is None:
        directions = unit_directions(x, num_slices, seed)
    exact = torch.promote_types(x.dtype, torch.float32)
    projected = (x @ directions.to(x.dtype)).to(exact)  # [*, N, K]
    t, phi, weights = quadrature(num_points, t_max, exact, x.device)
    angles = projected.unsqueeze(-1) * t  # [*, N, K, T]
    sums = torch.stack((angles.cos().sum(-3), angles.sin().sum(-3)))  # [2, *, K, T]
    count = x.new_full((), x.shape[-2], dtype=exact)
    if group is not None:
        sums = all_reduce_sum(sums, group)
        dist.all_reduce(count, group=group)
    cosine, sine = sums / count
    error = (cosine - phi).square() + sine.square()
    return ((error @ weights) * count).mean()


def quadrature(
    num_points: int, t_max: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Points on [0, t_max], the standard normal's characteristic function there, and weights that include it."""
    t = torch.linspace(0, t_max, num_points, dtype=dtype, device=device)
    phi = torch.exp(-t.square() / 2)
    step = t_max / (num_points - 1)
    end = (torch.arange(num_points, device=device) % (num_points - 1)) == 0
    return t, phi, torch.where(end, step, 2 * step) * phi


def unit_directions(x: Tensor, num_slices: int, seed: int | Tensor | None) -> Tensor:
    """(D, K) columns of unit length from the normal distribution, drawn in float32 on x's device."""
    generator = None
    if seed is not None:
        generator = torch.Generator(x.device).manual_seed(int(seed))
    directions = torch.randn(x.shape[-1], num_slices, device=x.device, dtype=torch.float32, generator=generator)
    directions = directions / directions.norm(p=2, dim=0)
    return directions.to(torch.float64) if x.dtype == torch.float64 else directions


def characteristic_sums(x: Tensor, directions: Tensor, num_points: int, t_max: float) -> Tensor:
    """The operator `sigreg`: sums (V, 2, T, K) of cosine and sine over samples."""
    exact = torch.promote_types(x.dtype, torch.float32)
    projected = (x @ directions).to(exact)
    parts = []
    for point in torch.linspace(0, t_max, num_points, dtype=exact, device=x.device):  # a seventeenth of the memory
        angles = projected * point
        parts.append(torch.stack((angles.cos().sum(1), angles.sin().sum(1)), 1))
    return torch.stack(parts, 2)


def characteristic_gradient(grad: Tensor, x: Tensor, directions: Tensor, num_points: int, t_max: float) -> Tensor:
    """The operator's gradient with respect to x."""
    projected = (x @ directions).to(grad.dtype)
    gradient = torch.zeros_like(projected)
    for j, point in enumerate(torch.linspace(0, t_max, num_points, dtype=grad.dtype, device=grad.device)):
        angles = projected * point
        gradient += point * (grad[:, 1, j].unsqueeze(1) * angles.cos() - grad[:, 0, j].unsqueeze(1) * angles.sin())
    return gradient.to(x.dtype) @ directions.t()
