"""The command `jepa-kernels patch-report`: builds a model, patches it, and prints what that changes."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import nn

from .core import patch
from .estimate import comparison, measure


class FactoryError(ValueError):
    """The factory cannot be imported, or returns something else than a model."""


def patch_report(factory: str, gflops: float | None = None, bandwidth: float | None = None) -> str:
    """What `patch` replaces in the model of `factory`, "module:function"; with inputs, also the counts before and after.

    Rates that are not given, in GFLOP/s and GB/s, are measured on the model's device.

    Raises:
        FactoryError: the function cannot be found, or returns neither a model nor (model, inputs).
    """
    model, inputs = _built(factory)
    if inputs is None:
        return f"{patch(model)}\n(return (model, inputs) from the factory for counts of kernels, FLOPs and bytes)"
    rates = _rates(model, gflops, bandwidth)
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


def _rates(model: nn.Module, gflops: float | None, bandwidth: float | None) -> tuple[float, float]:
    """FLOP/s and bytes/s."""
    if gflops is not None and bandwidth is not None:
        return gflops * 1e9, bandwidth * 1e9
    from ..bench.ceilings import measure_ceilings

    parameter = next(model.parameters(), torch.empty(0))
    ceilings = measure_ceilings(parameter.device, quick=True)
    matrix = ceilings.matrix("bf16" if parameter.dtype == torch.bfloat16 else "fp32")
    return (matrix if gflops is None else gflops * 1e9, ceilings.copy_bytes_per_s if bandwidth is None else bandwidth * 1e9)
