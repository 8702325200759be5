"""jepa-kernels: fused kernels for training JEPA models on CPUs and GPUs. Use as `import jepa_kernels as jk`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it. Imported on first use, so that `import jepa_kernels` costs little beyond torch.
_EXPORTS = {
    "AdamWEMA": "optim.adamw_ema",
    "BackendError": "backends",
    "EMATarget": "optim.ema_target",
    "FrameCausal": "attention_masks",
    "KeyPadding": "attention_masks",
    "Ragged": "attention_masks",
    "RaggedIds": "ragged",
    "Rope3D": "rope",
    "adamw_ema_": "functional.adamw_ema",
    "apply_masks": "masks",
    "backend": "backends",
    "ema_update_": "functional.ema_update",
    "explain": "functional.explain",
    "jepa_loss": "functional.jepa_loss",
    "masked_attention": "functional.masked_attention",
    "patch": "integrations.core",
    "patch_embed": "functional.patch_embed",
    "patch_embed_pair": "functional.patch_embed_pair",
    "sigreg": "functional.sigreg",
    "unpatch": "integrations.core",
    "vicreg_loss": "functional.vicreg_loss",
}
_SUBMODULES = ("backends", "data", "envs", "hardware", "integrations", "masks", "models", "nn", "optim", "planning", "reference")

if TYPE_CHECKING:
    from . import backends, data, envs, hardware, integrations, masks, models, nn, optim, planning, reference
    from .attention_masks import FrameCausal, KeyPadding, Ragged
    from .backends import BackendError, backend
    from .functional.adamw_ema import adamw_ema_
    from .functional.ema_update import ema_update_
    from .functional.explain import explain
    from .functional.jepa_loss import jepa_loss
    from .functional.masked_attention import masked_attention
    from .functional.patch_embed import patch_embed
    from .functional.patch_embed_pair import patch_embed_pair
    from .functional.sigreg import sigreg
    from .functional.vicreg_loss import vicreg_loss
    from .integrations.core import patch, unpatch
    from .masks import apply_masks
    from .optim.adamw_ema import AdamWEMA
    from .optim.ema_target import EMATarget
    from .ragged import RaggedIds
    from .rope import Rope3D

__all__ = [
    "AdamWEMA",
    "BackendError",
    "EMATarget",
    "FrameCausal",
    "KeyPadding",
    "Ragged",
    "RaggedIds",
    "Rope3D",
    "__version__",
    "adamw_ema_",
    "apply_masks",
    "backend",
    "backends",
    "data",
    "ema_update_",
    "envs",
    "explain",
    "hardware",
    "integrations",
    "jepa_loss",
    "masked_attention",
    "masks",
    "models",
    "nn",
    "optim",
    "patch",
    "patch_embed",
    "patch_embed_pair",
    "planning",
    "reference",
    "sigreg",
    "unpatch",
    "vicreg_loss",
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
