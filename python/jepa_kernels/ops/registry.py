"""One entry an operator: its backends, and what tests, compile gate, benchmark and support table need to know of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

# Every operator, in the order in which tables list them. Importing the module registers the operator.
OPERATOR_NAMES = ("patch_embed", "patch_embed_pair", "masked_attention", "ema_update", "adamw_ema", "jepa_loss", "sigreg")


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    `supports(*arguments)` takes the arguments of the operator's forward and returns None, or the reason why this backend cannot
    run them; it has no side effects. `functions` maps "forward" (and "backward", where there is one) to implementations that all
    backends of the operator define with the same signature.
    """

    name: str
    supports: Callable[..., str | None]
    functions: Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Operator:
    """An operator and its implementations. `dtypes` lists, for each backend, the element types it computes in; `native` names the
    operator whose native code it calls, where that is another."""

    name: str
    backends: Mapping[str, Backend]
    dtypes: Mapping[str, tuple[torch.dtype, ...]] = field(default_factory=dict)
    native: str = ""


_operators: dict[str, Operator] = {}


def register(operator: Operator) -> Operator:
    """Adds an operator; called once by its module in `ops`."""
    if operator.name not in OPERATOR_NAMES:
        raise ValueError(f"operator {operator.name!r} is missing in OPERATOR_NAMES of {__name__}")
    _operators[operator.name] = operator
    return operator


def get(name: str) -> Operator:
    """The operator of that name.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in OPERATOR_NAMES:
        raise ValueError(f"unknown operator {name!r}: one of {', '.join(OPERATOR_NAMES)}")
    if name not in _operators:
        importlib.import_module(f"jepa_kernels.ops.{name}")
    return _operators[name]


def all_operators() -> list[Operator]:
    """Every operator, imported if it was not yet."""
    return [get(name) for name in OPERATOR_NAMES]
