"""jepa-kernels: fused kernels for training JEPA models on CPUs and GPUs. Use as `import jepa_kernels as jk`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it. Imported on first use, so that `import jepa_kernels` costs little beyond torch.
_EXPORTS = {
    "BackendError": "backends",
    "apply_masks": "masks",
    "backend": "backends",
    "ema_update_": "functional.ema_update",
    "explain": "functional.explain",
}
_SUBMODULES = ("backends", "data", "hardware", "masks", "models", "nn", "reference")

if TYPE_CHECKING:
    from . import backends, data, hardware, masks, models, nn, reference
    from .backends import BackendError, backend
    from .functional.ema_update import ema_update_
    from .functional.explain import explain
    from .masks import apply_masks

__all__ = [
    "BackendError",
    "__version__",
    "apply_masks",
    "backend",
    "backends",
    "data",
    "ema_update_",
    "explain",
    "hardware",
    "masks",
    "models",
    "nn",
    "reference",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
