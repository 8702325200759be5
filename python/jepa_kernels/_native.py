"""Loads the native modules `_cpu` and `_cuda`, remembers why one is absent, and describes tensors to them."""

from __future__ import annotations

import ctypes
import functools
import importlib
from types import ModuleType

import torch  # first: the native code uses the OpenMP runtime that torch brings

# The codes of csrc/include/jepa/tensor_view.h.
DTYPE_CODES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.uint8: 4,
    torch.int64: 5,
    torch.int32: 6,
    torch.bool: 7,
}

View = tuple[int, int, tuple[int, ...], tuple[int, ...], int]


@functools.cache
def _load(name: str) -> tuple[ModuleType | None, str | None]:
    """The module, or None and the reason why it is absent."""
    qualified = f"jepa_kernels.{name}"
    try:
        return importlib.import_module(qualified), None
    except ModuleNotFoundError as error:
        if error.name != qualified:
            raise
        switch = f"JEPA_KERNELS_BUILD_{name.strip('_').upper()}=on"
        return None, f"the native module {qualified} was not built; reinstall with {switch} to see why"
    except ImportError as error:
        # A torch without GNU OpenMP leaves the symbols of our loops unresolved: bring the runtime in ourselves, once.
        if "GOMP" not in str(error):
            return None, f"the native module {qualified} does not load: {error}"
    try:
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
        return importlib.import_module(qualified), None
    except (OSError, ImportError) as error:
        return None, f"the native module {qualified} does not load: {error}"


def cpu() -> ModuleType:
    """The CPU kernels; ask `why_no_cpu` first."""
    module, reason = _load("_cpu")
    if module is None:
        raise RuntimeError(reason)
    return module


def cuda() -> ModuleType:
    """The CUDA kernels; ask `why_no_cuda` first."""
    module, reason = _load("_cuda")
    if module is None:
        raise RuntimeError(reason)
    return module


def why_no_cpu() -> str | None:
    """None where the CPU kernels are there, otherwise the reason."""
    return _load("_cpu")[1]


def why_no_cuda() -> str | None:
    """None where the CUDA kernels are built, otherwise the reason. Says nothing about a GPU."""
    return _load("_cuda")[1]


def view(tensor: torch.Tensor | None) -> View | None:
    """What the native side knows of a tensor: (address, dtype code, sizes, strides, bytes to the end of its storage)."""
    if tensor is None:
        return None
    storage_bytes = int(tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.element_size())
    return (tensor.data_ptr(), DTYPE_CODES[tensor.dtype], tuple(tensor.shape), tensor.stride(), storage_bytes)
