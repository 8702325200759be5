"""The command `jepa-kernels patch-report`: builds a model, patches it, and prints what that changes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .core import patch
from .estimate import comparison, measure

# (device, "bf16" or "fp32") -> FLOP/s of matrix products, bytes/s of a copy
Roofs = Callable[[torch.device, str], tuple[float, float]]


class FactoryError(ValueError):
    """The factory cannot be imported, or returns something else than a model."""


def patch_report(factory: str, roofs: Roofs, gflops: float | None = None, bandwidth: float | None = None) -> str:
    """What `patch` replaces in the model of `factory`, "module:function"; with inputs, also the counts before and after.

    `gflops` in GFLOP/s and `bandwidth` in GB/s; what is not given, `roofs` measures on the model's device.

    Raises:
        FactoryError: the function cannot be found, or returns neither a model nor (model, inputs).
    """
    model, inputs = _built(factory)
    if inputs is None:
        return f"{patch(model)}\n(return (model, inputs) from the factory for counts of kernels, FLOPs and bytes)"
    rates = _rates(model, roofs, gflops, bandwidth)
    before = measure(model, inputs, *rates)
    report = patch(model)
    after = measure(model, inputs, *rates)
    return f"{report}\n\n{comparison(before, after)}\nat {rates[0] / 1e9:.0f} GFLOP/s and {rates[1] / 1e9:.1f} GB/s"


def _built(factory: str) -> tuple[nn.Module, Any]:
    module_name, colon, name = factory.partition(":")
    if not (module_name and colon and name):
        raise FactoryError(f"{factory!r} is not MODULE:FACTORY, such as mymodels:build")
    sys.path.insert(0, "")
    try:
        built = getattr(importlib.import_module(module_name), name)()
    except (ImportError, AttributeError) as error:
        raise FactoryError(f"{factory!r} cannot be called: {error}") from error
    finally:
        sys.path.remove("")
    model, inputs = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise FactoryError(f"{factory!r} returned a {type(model).__name__}; return a model, or (model, inputs)")
    return model, inputs


def _rates(model: nn.Module, roofs: Roofs, gflops: float | None, bandwidth: float | None) -> tuple[float, float]:
    """FLOP/s and bytes/s."""
    if gflops is not None and bandwidth is not None:
        return gflops * 1e9, bandwidth * 1e9
    parameter = next(model.parameters(), torch.empty(0))
    matrix, copy = roofs(parameter.device, "bf16" if parameter.dtype == torch.bfloat16 else "fp32")
    return matrix if gflops is None else gflops * 1e9, copy if bandwidth is None else bandwidth * 1e9
