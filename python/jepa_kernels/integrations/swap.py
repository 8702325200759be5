"""Replaces the class of a module instance by a subclass with another forward, and back.

An instance's class, not its `forward` attribute: bound methods in instance dictionaries do not survive pickling, and a
class does not touch parameters, buffers, hooks, state-dict keys or `isinstance`. The subclass keeps the original's name,
because configurations, wrapping policies and reports read it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from .targets import Target, all_targets

_MARK = "_jepa_kernels_patch"
_COUNTS = "_jepa_kernels_fallbacks"
_classes: dict[tuple[type, str], type] = {}


def patched_class(original: type, target: Target) -> type:
    """The subclass of `original` that runs `target`; one for each pair."""
    key = (original, target.key)
    if key not in _classes:
        _classes[key] = _generate(original, target)
    return _classes[key]


def _generate(original: Any, target: Target) -> type:
    original_forward = original.forward

    @functools.wraps(original_forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        reason = target.unsupported(self, *args, **kwargs)
        if reason is None:
            return target.forward(self, *args, **kwargs)
        count_fallback(self, reason)
        return original_forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        # Pickles name the original class and the target, so that they load wherever both packages are.
        state = object.__reduce_ex__(self, 2)[2]
        return rebuild, (original, target.key), state

    namespace = {
        "forward": forward,
        "__reduce_ex__": reduce,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        _MARK: (original, target),
    }
    return type(original)(original.__name__, (original,), namespace)


def rebuild(original: type, key: str) -> nn.Module:
    """An empty patched instance, for pickle and copy."""
    cls = patched_class(original, all_targets()[key])
    return cls.__new__(cls)


def swap(module: nn.Module, target: Target) -> None:
    """Patches one instance."""
    target.install(module)
    module.__class__ = patched_class(type(module), target)


def check_restorable(module: nn.Module, name: str) -> None:
    """Raises RuntimeError if another tool has replaced the class of a patched module since."""
    if _MARK not in type(module).__dict__:
        raise RuntimeError(
            f"{name} was given the class {type(module).__name__} after it was patched (fully_shard does that); "
            "it cannot be restored"
        )


def swap_back(module: nn.Module) -> None:
    """Restores one instance."""
    original, target = patch_of(module)
    module.__class__ = original
    target.uninstall(module)
    module.__dict__.pop(_COUNTS, None)


def is_patched(module: nn.Module) -> bool:
    """Whether the module runs a replacement."""
    return hasattr(type(module), _MARK)


def patch_of(module: nn.Module) -> tuple[type, Target]:
    """The original class and the target of a patched module."""
    return getattr(type(module), _MARK)


def run_original(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward that the module had before it was patched; its own forward otherwise."""
    forward = patch_of(module)[0].forward if is_patched(module) else type(module).forward
    return forward(module, *args, **kwargs)


def count_fallback(module: nn.Module, reason: str) -> None:
    """Notes a call that kept the original forward. A compiled graph counts nothing: the choice is part of the graph."""
    if torch.compiler.is_compiling():
        return
    counts = module.__dict__.setdefault(_COUNTS, {})
    counts[reason] = counts.get(reason, 0) + 1


def fallback_counts(module: nn.Module) -> dict[str, int]:
    """Reason -> number of calls."""
    return dict(module.__dict__.get(_COUNTS, {}))
