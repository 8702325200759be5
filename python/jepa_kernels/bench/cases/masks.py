"""Token ids that the cases keep: one rectangle per sample over all frames, as V-JEPA's block masks leave them."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_block(
    generator: torch.Generator, batch: int, frames: int, height: int, width: int, fraction: float
) -> Tensor:
    """int64 (batch, K) ascending ids of a random rectangle of about `fraction` of the grid, on every frame.

    Token id = frame * height * width + row * width + column.
    """
    rows = max(1, round(height * fraction**0.5))
    columns = max(1, min(width, round(fraction * height * width / rows)))
    ids = []
    for _ in range(batch):
        top = int(torch.randint(0, height - rows + 1, (), generator=generator))
        left = int(torch.randint(0, width - columns + 1, (), generator=generator))
        t = torch.arange(frames)[:, None, None] * (height * width)
        r = (top + torch.arange(rows))[None, :, None] * width
        c = (left + torch.arange(columns))[None, None, :]
        ids.append((t + r + c).reshape(-1))
    return torch.stack(ids)
