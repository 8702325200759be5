"""Which of an operator's CUDA C++ kernels runs: tensor-core instructions of a warp, or those of a warpgroup."""

from __future__ import annotations

import functools

import torch

from .. import backends, hardware

# "warp": every GPU from compute capability 8.0; "warpgroup": 9.0 alone. The codes of the enumerations in csrc/include/jepa.
CUDA_PATHS = {"warp": 0, "warpgroup": 1}


def path_code(operator: str, device: torch.device, path: str | None = None) -> int:
    """The code of `path`; None asks the tuned table of the device's architecture, `{operator: {"cuda_path": ...}}`."""
    return CUDA_PATHS[path or _tuned_path(operator, device.index or 0)]


@functools.cache
def _tuned_path(operator: str, device: int) -> str:
    """The path that every GPU has until another was measured faster."""
    return backends.tuned_table(hardware.architecture(device)).get(operator, {}).get("cuda_path", "warp")
