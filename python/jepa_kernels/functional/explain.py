"""`explain`: which backend would run a call, and why."""

from __future__ import annotations

import importlib
from typing import Any

from .. import backends
from ..ops import registry


def explain(operator: str, *args: Any, **kwargs: Any) -> backends.Decision:
    """Prints and returns which backend would run `jk.<operator>(*args, **kwargs)` here and now; nothing is computed.

    Args:
        operator: name of the operator, such as `"masked_attention"`; the in-place `"ema_update_"` may be written either way.
        *args, **kwargs: what the public function would be called with.

    Raises:
        ValueError: the operator is unknown, or the arguments are wrong (as the function itself would raise).

    Example:
        >>> import torch, jepa_kernels as jk
        >>> with jk.backend("reference"):
        ...     decision = jk.explain("ema_update", [torch.zeros(2)], [torch.ones(2)], 0.9)  # doctest: +ELLIPSIS
        ema_update: reference (forced)
        ...
    """
    entry = registry.get(operator.rstrip("_"))
    prepare = importlib.import_module(f"jepa_kernels.functional.{entry.name}").prepare
    arguments = tuple(prepare(*args, **kwargs).values())
    if isinstance(arguments[0], list) and not arguments[0]:
        raise ValueError(f"explain: {entry.name} of an empty list runs nothing; pass at least one tensor")
    decision = backends.decide(entry, _device_of(arguments), arguments)
    print(decision)
    return decision


def _device_of(arguments: tuple[Any, ...]) -> Any:
    """The device of the first tensor; operators take their leading tensor, or list of them, first."""
    first = arguments[0]
    return first[0].device if isinstance(first, list) else first.device
