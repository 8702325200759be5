"""Rotary positions shared between the layers of a model: every layer asks with the same ids, one builds the tables."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..rope import Rope3D

_KEPT = 8  # of each kind: a training step alternates between a few masks and grids


@dataclass
class _Known:
    """A Rope3D and the ids it was made from."""

    ids: weakref.ReferenceType[Tensor]
    version: int | None
    copy: Tensor | None
    key: tuple[Any, ...]
    rope: Rope3D

    def answers(self, ids: Tensor, key: tuple[Any, ...]) -> bool:
        if self.ids() is not ids or self.key != key:
            return False
        if self.copy is not None:
            return torch.equal(self.copy, ids)
        return self.version == ids._version


_by_ids: list[_Known] = []
_by_shape: dict[tuple[Any, ...], Rope3D] = {}


def _capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured: what is computed now has no values before the graph runs, and is not kept."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def rope_of_ids(ids: Tensor, grid: tuple[int, int], query: Tensor) -> Rope3D:
    """Positions of the token ids (N,) or (B, N) on a grid of (rows, columns), with the precision of `rope_precision`."""
    precision = rope_precision(query)
    if torch.compiler.is_compiling() or not _plain(ids) or _capturing(ids):
        return Rope3D.from_ids(ids, grid, precision=precision)
    key = (grid, precision)
    for known in list(_by_ids):
        if known.answers(ids, key):
            return known.rope
    # Inference tensors count no versions: on a CPU a comparison with a copy is cheap, elsewhere it would wait.
    version = None if ids.is_inference() else ids._version
    if version is None and ids.device.type != "cpu":
        return Rope3D.from_ids(ids, grid, precision=precision)
    with torch.inference_mode(False):  # so that the tables can be kept
        copy = ids.clone() if version is None else None
        rope = Rope3D.from_ids(ids if copy is None else copy, grid, precision=precision)
    _by_ids[:] = [known for known in _by_ids if known.ids() is not None][-_KEPT + 1 :]
    _by_ids.append(_Known(weakref.ref(ids), version, copy, key, rope))
    return rope


def rope_of_grid(
    tokens: int,
    grid: tuple[int, int],
    query: Tensor,
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
    conditioning: int = 0,
) -> Rope3D:
    """Positions of the tokens 0, 1, ... of a grid of (rows, columns).

    With `conditioning`, each frame begins with that many further tokens at (frame, 0, 0), as V-JEPA 2-AC has them; `tokens`
    counts all.
    """
    precision = rope_precision(query)
    if torch.compiler.is_compiling() or not _plain(query) or _capturing(query):
        return _of_grid(tokens, grid, query.device, scale, conditioning, precision)
    key = (tokens, grid, query.device, scale, conditioning, precision)
    rope = _by_shape.get(key)
    if rope is None:
        with torch.inference_mode(False):  # so that the tables can be kept
            rope = _of_grid(tokens, grid, query.device, scale, conditioning, precision)
        while len(_by_shape) >= _KEPT:
            _by_shape.pop(next(iter(_by_shape)), None)  # another thread may have been here
        _by_shape[key] = rope
    return rope


def _of_grid(
    tokens: int,
    grid: tuple[int, int],
    device: torch.device,
    scale: tuple[float, float, float],
    conditioning: int,
    precision: str,
) -> Rope3D:
    if conditioning == 0:
        return Rope3D.from_ids(torch.arange(tokens, device=device), grid, scale, precision=precision)
    in_frame = grid[0] * grid[1]
    frames = tokens // (conditioning + in_frame)
    patches = Rope3D.from_ids(torch.arange(frames * in_frame, device=device), grid, scale).positions
    positions = torch.zeros(frames, conditioning + in_frame, 3, device=device)
    positions[:, conditioning:] = patches.view(frames, in_frame, 3)
    positions[:, :conditioning, 0] = torch.arange(frames, device=device, dtype=torch.float32)[:, None]
    return Rope3D(positions.flatten(0, 1), precision=precision)


def rope_precision(query: Tensor) -> str:
    """The roundings of the original code: its angles are in the dtype of the queries, which CUDA autocast widens halfway."""
    low = query.dtype in (torch.bfloat16, torch.float16)
    return "amp_compat" if low and query.is_cuda and torch.is_autocast_enabled("cuda") else "native"


def _plain(x: Tensor) -> bool:
    """Neither a tracer's tensor nor one inside a functorch transform."""
    return type(x) in (Tensor, torch.nn.Parameter)
