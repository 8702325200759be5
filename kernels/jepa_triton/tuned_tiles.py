"""Which tile an attention kernel takes: that of the architecture's tuned table, and where it has none, the default.

`configs/<architecture>.json` may hold, beside `automatic`, what `jepa-kernels tune masked_attention` found:

    {"masked_attention": {"forward": {"64-long": {"block_m": 128, "block_n": 64, "num_warps": 8, "num_stages": 3}}}}

A key is the largest head dim that an entry serves and the kind of its rows. Entries serve 16-bit dtypes without a boolean mask.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .. import backends, hardware
from .masked_attention_tiles import Tile, forward_tile, key_gradient_tile, query_gradient_tile

OPERATOR = "masked_attention"
KERNELS = ("forward", "query_gradient", "key_gradient")
HEAD_DIMS = (32, 64, 80, 96, 128)  # an entry serves those up to its own, from the one before it on
SHORT_ROWS = 320  # rows of a sequence up to which it counts as short: images, frames, contexts
ROWS = {"short": SHORT_ROWS, "long": None}
OTHERS = ("cuda_path",)  # what else a table says of the operator, and other modules read
LARGEST = 1024  # of any number in an entry
_REQUIRED = tuple(name for name in Tile._fields if name not in Tile._field_defaults)

_architecture: ContextVar[str | None] = ContextVar("jepa_kernels_tuned_architecture", default=None)
_forced: ContextVar[tuple[str, Tile] | None] = ContextVar("jepa_kernels_forced_tile", default=None)


@contextlib.contextmanager
def compiling_for(architecture: str) -> Iterator[None]:
    """Inside, tensors that lie on no GPU take the tiles that a GPU of this architecture would."""
    token = _architecture.set(architecture)
    try:
        yield
    finally:
        _architecture.reset(token)


@contextlib.contextmanager
def forcing(kernel: str, tile: Tile) -> Iterator[None]:
    """Inside, one kernel takes this tile whatever the tables say: how tuning tries it."""
    token = _forced.set((kernel, tile))
    try:
        yield
    finally:
        _forced.reset(token)


def choose(kernel: str, q: Tensor, rows: int, bool_mask: bool) -> Tile:
    """The tile of one of `KERNELS` for queries like q in sequences of up to `rows` rows."""
    forced = _forced.get()
    if forced is not None and forced[0] == kernel:
        return forced[1]
    head_dim = q.shape[-1]
    if q.dtype != torch.float32 and not bool_mask:
        architecture = hardware.architecture(q.device.index or 0) if q.device.type == "cuda" else _architecture.get()
        tile = None if architecture is None else table(architecture).get((kernel, key(head_dim, rows)))
        if tile is not None:
            return tile
    return default(kernel, head_dim, q.dtype, rows, bool_mask)


def default(kernel: str, head_dim: int, dtype: torch.dtype, rows: int, bool_mask: bool = False) -> Tile:
    """The tile of a kernel where nothing was tuned."""
    if kernel == "forward":
        return forward_tile(head_dim, dtype, rows, bool_mask)
    return (query_gradient_tile if kernel == "query_gradient" else key_gradient_tile)(head_dim, dtype, bool_mask)


def key(head_dim: int, rows: int) -> str:
    """The key of an entry; of head dims beyond the last one, a key that no table has."""
    limit = next((limit for limit in HEAD_DIMS if head_dim <= limit), head_dim)
    return f"{limit}-{'short' if rows <= SHORT_ROWS else 'long'}"


def entries() -> dict[tuple[str, str], Tile]:
    """The tuned tiles of the architecture that is compiled for; none outside `compiling_for`."""
    architecture = _architecture.get()
    return {} if architecture is None else table(architecture)


@functools.cache
def table(architecture: str) -> dict[tuple[str, str], Tile]:
    """The tuned tiles of an architecture, by kernel and key.

    Raises:
        ValueError: the table cannot be understood; the message names the file and the key.
    """
    listed = backends.tuned_table(architecture).get(OPERATOR, {})
    where = f"configs/{architecture}.json: {OPERATOR}"
    known = {f"{limit}-{rows}" for limit in HEAD_DIMS for rows in ROWS}
    found = {}
    for kernel, entries in _object(listed, where).items():
        if kernel in OTHERS:
            continue
        if kernel not in KERNELS:
            raise ValueError(f"{where}: unknown kernel {kernel!r}; one of {', '.join(KERNELS)}")
        for name, entry in _object(entries, f"{where}.{kernel}").items():
            if name not in known:
                raise ValueError(f"{where}.{kernel}: unknown key {name!r}; such as 64-long")
            found[kernel, name] = tile_of(entry, f"{where}.{kernel}.{name}")
    return found


def tile_of(entry: Any, where: str) -> Tile:
    """The tile that an object of a table describes; fields that it leaves out have their defaults.

    Raises:
        ValueError: naming `where` and the field.
    """
    fields = _object(entry, where)
    for name in (*_REQUIRED, *fields):
        if name not in Tile._fields or name not in fields:
            problem = "unknown" if name not in Tile._fields else "missing"
            raise ValueError(f"{where}: {problem} field {name!r}; fields are {', '.join(Tile._fields)}")
        value = fields[name]
        optional = name in Tile._field_defaults and value == Tile._field_defaults[name]
        if not optional and (type(value) is not int or not 1 <= value <= LARGEST):
            raise ValueError(f"{where}.{name} is {value!r}; it must be a whole number from 1 to {LARGEST}")
    for name in ("block_m", "block_n", "num_warps"):
        if fields[name] & (fields[name] - 1):
            raise ValueError(f"{where}.{name} is {fields[name]}; it must be a power of two")
    return Tile(**fields)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}; it must be an object")
    return value
