"""Fixed sine-cosine position embeddings in one, two and three dimensions, computed in float64, and their interpolation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def get_1d_sincos_pos_embed_from_grid(embed_dim: int, pos: ArrayLike) -> FloatArray:
    """Sine-cosine embedding of positions on one axis: [sin(p w_j) | cos(p w_j)], w_j = 10000^(-j / (D/2)).

    Shapes: pos, any shape with M elements; returns (M, D). Everything is float64.
    Errors: ValueError when `embed_dim` is odd. Deterministic. Source: Vaswani et al. (2017), as MAE lays it out.

    >>> get_1d_sincos_pos_embed_from_grid(4, [0.0]).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    if embed_dim % 2:
        raise ValueError(f"embed_dim must be even, half sines and half cosines; got {embed_dim}")
    omega = 10000.0 ** (-np.arange(embed_dim // 2, dtype=np.float64) / (embed_dim / 2))
    angle = np.asarray(pos, dtype=np.float64).reshape(-1, 1) * omega  # [M, D/2]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def get_2d_sincos_pos_embed(embed_dim: int, grid_size: int | tuple[int, int], cls_token: bool = False) -> FloatArray:
    """Embedding of an image grid: the first half of the channels encodes the row, the second the column.

    Shapes: `grid_size` is (rows, columns) of tokens, or one number for both; returns (rows*columns, D), in raster
    order, with a row of zeros in front when `cls_token`. float64. Errors: ValueError when D is not a multiple of 4.
    Deterministic. Source: He et al., MAE (2022).

    >>> get_2d_sincos_pos_embed(8, (2, 3)).shape
    (6, 8)
    """
    rows, columns = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
    if embed_dim % 4:
        raise ValueError(f"embed_dim must be a multiple of 4; got {embed_dim}")
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    parts = [get_1d_sincos_pos_embed_from_grid(embed_dim // 2, axis) for axis in (row, column)]
    return _with_cls(np.concatenate(parts, axis=1), cls_token)


def get_3d_sincos_pos_embed(
    embed_dim: int,
    grid_size: int | tuple[int, int],
    grid_depth: int,
    cls_token: bool = False,
    uniform_power: bool = False,
) -> FloatArray:
    """Embedding of a clip grid, channels laid out depth | row | column.

    Formula: the axes get D/2, D/4, D/4 channels, or 2*ceil(D/6) each with `uniform_power`; the concatenation is cut
    to D channels. Shapes: returns (grid_depth*rows*columns, D), token id = t*rows*columns + r*columns + c, with a row
    of zeros in front when `cls_token`. float64.
    Errors: ValueError when D is not a multiple of 8 (of 2 with `uniform_power`). Deterministic.
    Source: Bardes et al., V-JEPA (2024).

    >>> get_3d_sincos_pos_embed(32, 4, grid_depth=2, uniform_power=True).shape
    (32, 32)
    """
    rows, columns = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
    multiple = 2 if uniform_power else 8
    if embed_dim % multiple:
        raise ValueError(f"embed_dim must be a multiple of {multiple}; got {embed_dim}")
    axis_dim = 2 * -(-embed_dim // 6)
    dims = (axis_dim,) * 3 if uniform_power else (embed_dim // 2, embed_dim // 4, embed_dim // 4)
    axes = np.meshgrid(np.arange(grid_depth), np.arange(rows), np.arange(columns), indexing="ij")
    parts = [get_1d_sincos_pos_embed_from_grid(dim, axis) for dim, axis in zip(dims, axes, strict=True)]
    return _with_cls(np.concatenate(parts, axis=1)[:, :embed_dim], cls_token)


def _with_cls(embedding: FloatArray, cls_token: bool) -> FloatArray:
    if not cls_token:
        return embedding
    return np.concatenate([np.zeros((1, embedding.shape[1])), embedding], axis=0)


def interpolate_pos_embed(
    pos_embed: torch.Tensor, grid_size: Sequence[int], new_grid_size: Sequence[int], num_prefix_tokens: int = 0
) -> torch.Tensor:
    """A table of position embeddings for another size of input: bicubic over images, trilinear over clips.

    Formula: each channel is a picture (rows, columns) or a volume (depth, rows, columns), sampled at the centres of the new
    cells (`align_corners=False`): `F.interpolate` with "bicubic" or "trilinear", what the official I-JEPA and V-JEPA encoders
    do when an input does not have the size of their table. The new grid is named, where they pass a scale: a rounded
    square root of token counts can miss the grid by one, and cannot tell rows from columns. Equal sizes return the table.

    Shapes: pos_embed (N, D) or (1, N, D) with N = num_prefix_tokens + the product of `grid_size`; both grids are
    (rows, columns) or (depth, rows, columns). Returns the like with the tokens of `new_grid_size`. The first
    `num_prefix_tokens` rows, class tokens, have no place on the grid and stay as they are; I-JEPA's own tables have none.

    Dtypes: any floating point; float16 and bfloat16 are interpolated in float32 and rounded once. Differentiable.
    Errors: ValueError when the grids differ in rank or are empty, or N does not fit. Deterministic on CPUs; the backward
    pass of `F.interpolate` on GPUs is not.
    Source: I-JEPA (Assran et al., 2023), V-JEPA (Bardes et al., 2024).

    >>> table = torch.from_numpy(get_2d_sincos_pos_embed(8, (4, 4)))
    >>> interpolate_pos_embed(table, (4, 4), (6, 8)).shape
    torch.Size([48, 8])
    """
    old, new = tuple(grid_size), tuple(new_grid_size)
    if len(old) not in (2, 3) or len(new) != len(old) or min(*old, *new) < 1:
        raise ValueError(f"grids must both be (rows, columns) or (depth, rows, columns), 1 and more; got {old} and {new}")
    tokens = num_prefix_tokens + int(np.prod(old))
    if pos_embed.ndim not in (2, 3) or pos_embed.shape[-2] != tokens or pos_embed.shape[:-2] not in ((), (1,)):
        raise ValueError(
            f"pos_embed has shape {tuple(pos_embed.shape)}; expected ({tokens}, D) or (1, {tokens}, D) for the grid {old} "
            f"and {num_prefix_tokens} prefix tokens"
        )
    if old == new:
        return pos_embed
    prefix, table = pos_embed.split([num_prefix_tokens, tokens - num_prefix_tokens], dim=-2)
    volume = table.reshape(1, *old, -1).movedim(-1, 1)  # [1, D, (depth,) rows, columns]
    computed = volume.to(torch.promote_types(volume.dtype, torch.float32))
    sampled = F.interpolate(computed, size=new, mode="bicubic" if len(new) == 2 else "trilinear", align_corners=False)
    flat = sampled.to(table.dtype).flatten(2).transpose(1, 2).reshape(*pos_embed.shape[:-2], -1, pos_embed.shape[-1])
    return torch.cat([prefix, flat], dim=-2)
