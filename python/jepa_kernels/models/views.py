"""Several views of each image through one encoder, in one call whatever their resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..nn import interpolate_pos_embed
from ..rope import Rope3D
from ._common import packed, packed_lengths, run_blocks
from .ijepa import images_channels_first
from .vision_transformer import VisionTransformer


def encode_views(encoder: VisionTransformer, views: Sequence[Tensor]) -> list[Tensor]:
    """The encoder's tokens of every view: images (B, H, W, C) or (B, C, H, W) each -> (B, N, D) each.

    Views of different sizes run as packed sequences, which attend within themselves: no padding, and one pass through the blocks.
    A view of another size than the encoder's takes the position table interpolated (bicubic), as DINO does; with RoPE its
    rows and columns are stretched to the encoder's grid.

    Raises:
        ValueError: no view, views that differ in B, or pixels that do not fit the encoder.
    """
    if not views or len({len(view) for view in views}) != 1:
        raise ValueError(f"views must hold one image of every sample each; got batches of {[len(view) for view in views]}")
    pixels = [images_channels_first(view, encoder.in_chans) for view in views]
    # Views of one size that follow each other are one batch.
    groups = [torch.cat(list(group)) for _, group in groupby(pixels, key=lambda view: tuple(view.shape[-2:]))]
    grids = [encoder.grid(group)[1:] for group in groups]
    tokens = [
        encoder.patch_embed(group, pos_embed=_table(encoder, grid)) for group, grid in zip(groups, grids, strict=True)
    ]
    shapes = [(part.shape[0], part.shape[1]) for part in tokens]
    positions = [_positions(encoder, grid, tokens[0].device) for grid in grids] if encoder.use_rope else None
    recompute = encoder.use_activation_checkpointing
    if len(tokens) == 1:
        rope = None if positions is None else Rope3D(positions[0])
        encoded = [encoder.norm(run_blocks(encoder.blocks, tokens[0], rope, recompute))]
    else:
        rope = None
        if positions is not None:
            every = [part.repeat(count, 1) for part, (count, _) in zip(positions, shapes, strict=True)]
            rope = Rope3D(torch.cat(every))
        lengths = packed_lengths(shapes, tokens[0].device)
        rows = encoder.norm(run_blocks(encoder.blocks, packed(tokens), rope, recompute, lengths))
        parts = rows.split([count * length for count, length in shapes])
        encoded = [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]
    return [view for part in encoded for view in part.split(len(views[0]))]


def pooled_views(encoder: VisionTransformer, views: Sequence[Tensor]) -> Tensor:
    """The mean token of every view: (V, B, D)."""
    return torch.stack([tokens.mean(dim=1) for tokens in encode_views(encoder, views)])


def _table(encoder: VisionTransformer, grid: tuple[int, int]) -> Tensor | None:
    if encoder.pos_embed is None:
        return None
    own = _own_grid(encoder)
    return encoder.pos_embed if grid == own else interpolate_pos_embed(encoder.pos_embed, own, grid)


def _positions(encoder: VisionTransformer, grid: tuple[int, int], device: torch.device) -> Tensor:
    own = _own_grid(encoder)
    scale = (1.0, own[0] / grid[0], own[1] / grid[1])
    return Rope3D.from_ids(torch.arange(grid[0] * grid[1], device=device), grid, scale).positions


def _own_grid(encoder: VisionTransformer) -> tuple[int, int]:
    return encoder.img_height // encoder.patch_size, encoder.img_width // encoder.patch_size


def check_views(name: str, views: Any, least: int) -> None:
    """Raises ValueError unless there is a list of at least so many views."""
    if isinstance(views, Tensor) or len(views) < least:
        found = f"a tensor of shape {tuple(views.shape)}" if isinstance(views, Tensor) else f"{len(views)}"
        raise ValueError(f"{name} takes a list of at least {least} views, (B, H, W, C) or (B, C, H, W) each; got {found}")
