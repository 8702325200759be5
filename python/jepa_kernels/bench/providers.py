"""The package's own backends as providers: `jk-cpu`, `jk-reference`, `jk-triton`, `jk-cuda`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .cases.base import Provider

PREFIX = "jk-"


def backend_names() -> list[str]:
    """Backends, the fastest kind first, as tables list them."""
    from .. import backends

    return [*(n for n in reversed(backends.NAMES) if n != "reference"), "reference"]


def why_not(operators: Sequence[str], backend: str, device: torch.device) -> str | None:
    """Why a backend cannot be asked at all for these operators on this device, or None.

    What depends on the arguments is left to the call, which raises `BackendError` with the reason.
    """
    from .. import info
    from ..ops import registry

    if backend == "cpu" and device.type != "cpu":
        return f"the cpu backend does not run on {device.type}"
    reasons = (info.why_not(registry.get(name), backend, device) for name in operators)
    return next((reason for reason in reasons if reason is not None), None)


def kernel_providers(
    operators: str | Sequence[str],
    device: torch.device,
    run: Callable[[Any], Any],
    **options: Any,
) -> list[Provider]:
    """One provider a backend; each forces its backend around the calls, so none can fall back in silence."""
    from .. import backends
    from .cases.base import Provider

    names = (operators,) if isinstance(operators, str) else tuple(operators)

    def provider(name: str) -> Provider:
        def supports(_inputs: Any) -> str | None:
            return why_not(names, name, device)

        return Provider(PREFIX + name, run, supports=supports, context=partial(backends.backend, name), **options)

    return [provider(name) for name in backend_names()]
