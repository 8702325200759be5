"""jepa-kernels: fused kernels for training JEPA models on CPUs and GPUs. Use as `import jepa_kernels as jk`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it. Imported on first use, so that `import jepa_kernels` costs little beyond torch.
_EXPORTS = {
    "BackendError": "backends",
    "RaggedIds": "ragged",
    "backend": "backends",
    "ema_update_": "functional.ema_update",
    "explain": "functional.explain",
    "patch_embed": "functional.patch_embed",
}
_SUBMODULES = ("backends", "hardware", "reference")

if TYPE_CHECKING:
    from . import backends, hardware, reference
    from .backends import BackendError, backend
    from .functional.ema_update import ema_update_
    from .functional.explain import explain
    from .functional.patch_embed import patch_embed
    from .ragged import RaggedIds

__all__ = [
    "BackendError",
    "RaggedIds",
    "__version__",
    "backend",
    "backends",
    "ema_update_",
    "explain",
    "hardware",
    "patch_embed",
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
