"""Defines operators in torch's dispatcher: one implementation for every device, which asks `backends.resolve` what runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "jepa_kernels"
# Library.define and impl cost about 2 us a call; torch.library.custom_op costs 7.
_library = torch.library.Library(NAMESPACE, "DEF")


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    tags: tuple[torch.Tag, ...] = (),
) -> Callable[..., Any]:
    """Defines `jepa_kernels::<schema>` and returns the callable operator.

    The implementation runs with autocast off: autocast would otherwise reach the torch operators inside it, after
    `functional` has already cast what should be cast. It runs with the tensors' GPU current, as kernels launch there.
    """
    name = _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
    short = name.split("::")[-1]

    def run(*arguments: Any) -> Any:
        with _without_autocast(), on_device(_device_of(arguments)):
            return implementation(*arguments)

    _library.impl(short, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{short}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{short}", backward, setup_context=setup_context, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), short)


def on_device(device: torch.device | None) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU the current one: kernels launch there, whatever GPU their tensors lie on. Does nothing for other devices."""
    return torch.cuda.device(device) if device is not None and device.type == "cuda" else contextlib.nullcontext()


def _device_of(arguments: tuple[Any, ...]) -> torch.device | None:
    """That of the leading tensor, or list of tensors."""
    first = arguments[0][0] if isinstance(arguments[0], list) and arguments[0] else arguments[0]
    return first.device if isinstance(first, torch.Tensor) else None


@contextlib.contextmanager
def _disabled_autocast(device_types: tuple[str, ...]) -> Any:
    with contextlib.ExitStack() as stack:
        for device_type in device_types:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def _without_autocast() -> contextlib.AbstractContextManager[None]:
    active = tuple(kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind))
    return _disabled_autocast(active) if active else contextlib.nullcontext()
