"""The package's own backends as providers: `jk-cpu`, `jk-reference`, `jk-triton`, `jk-cuda`; with `jk-cuda-warpgroup` or
`jk-cuda-warp` on GPUs that have two CUDA kernels of an operator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .. import backends
from ..ops import cuda_paths

if TYPE_CHECKING:
    from .cases.base import Provider

PREFIX = "jk-"


def backend_names() -> list[str]:
    """Backends, the fastest kind first, as tables list them."""
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
    """One provider a backend, and one for the CUDA kernel that the cuda backend would not choose here.

    Each forces its backend around the calls, so none can fall back in silence.
    """
    from .cases.base import Provider

    names = (operators,) if isinstance(operators, str) else tuple(operators)

    def provider(name: str, path: str | None = None) -> Provider:
        def supports(_inputs: Any) -> str | None:
            return why_not(names, name, device)

        full_name = PREFIX + (name if path is None else f"{name}-{path}")
        return Provider(full_name, run, supports=supports, context=partial(_forced, name, path), **options)

    found = [provider(name) for name in backend_names()]
    other = cuda_paths.other_path(names[0], device) if device.type == "cuda" and len(names) == 1 else None
    if other is not None:
        found.insert(1, provider("cuda", other))
    return found


@contextlib.contextmanager
def _forced(backend: str, path: str | None) -> Iterator[None]:
    with backends.backend(backend), contextlib.nullcontext() if path is None else cuda_paths.cuda_path(path):
        yield
