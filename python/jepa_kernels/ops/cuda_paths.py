"""Which of an operator's CUDA C++ kernels runs: tensor-core instructions of a warp, or those of a warpgroup."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar

import torch

from .. import backends, hardware

# "warp": every GPU from compute capability 8.0; "warpgroup": 9.0 alone. The codes of the enumerations in csrc/include/jepa.
CUDA_PATHS = {"warp": 0, "warpgroup": 1}
OPERATORS = ("patch_embed", "masked_attention")  # those with a kernel of each kind

_context: ContextVar[str | None] = ContextVar("jepa_kernels_cuda_path", default=None)


@contextlib.contextmanager
def cuda_path(name: str) -> Iterator[None]:
    """Forces one path inside, for comparing them; where the device lacks it, calls raise."""
    token = _context.set(name)
    try:
        yield
    finally:
        _context.reset(token)


def path_code(operator: str, device: torch.device) -> int:
    """The code of the path that runs: the forced one, or what the tuned table of the device's architecture names as
    `{operator: {"cuda_path": ...}}`."""
    return CUDA_PATHS[_context.get() or tuned_path(operator, device.index or 0)]


def other_path(operator: str, device: torch.device) -> str | None:
    """The path that this GPU also has, and the tuned table does not name; None where there is no other."""
    if operator not in OPERATORS or not torch.cuda.is_available() or torch.cuda.get_device_capability(device) != (9, 0):
        return None
    return next(path for path in CUDA_PATHS if path != tuned_path(operator, device.index or 0))


@functools.cache
def tuned_path(operator: str, device: int) -> str:
    """The path that every GPU has, until another was measured faster."""
    return backends.tuned_table(hardware.architecture(device)).get(operator, {}).get("cuda_path", "warp")
