"""Puts this package's operators into models of other code bases: `jk.patch(model)`, and what their training loops need.

Nothing of a code base is imported here: its modules are recognised by name and signature. `jk.integrations.transformers`,
`.vjepa2`, `.dinov2` and so on hold what is not a module: an attention function to register, parts of a training step.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {"Entry": "report", "Report": "report", "patch": "core", "unpatch": "core"}
_SUBMODULES = ("dinov2", "eb_jepa", "ijepa", "jepa", "lejepa", "timm", "transformers", "vjepa2")

__all__ = ["Entry", "Report", "patch", "unpatch"]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted((*__all__, *_SUBMODULES))
