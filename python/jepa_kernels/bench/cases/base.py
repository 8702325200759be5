"""What a benchmark case is: one workload, the providers that can run it, and how much work it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..correctness import Tolerance
from ..video import Clip

Inputs = Any
State = Any

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """What the inputs of a case are made from."""

    seed: int
    device: torch.device
    clip: Callable[[], Clip]

    def generator(self, offset: int = 0) -> torch.Generator:
        """A CPU generator, so that every device sees the same values."""
        return torch.Generator().manual_seed(self.seed * 1009 + offset)


@dataclass(frozen=True)
class Work:
    """Useful work of one call, by one formula for all providers: FLOPs, and the least bytes that must move."""

    flops: float
    bytes: float
    samples: int
    tokens: int


def flatten(_state: State, result: Any) -> list[Tensor]:
    """Outputs to check: the result itself, or its parts."""
    return [result] if isinstance(result, Tensor) else list(result)


def always(_inputs: Inputs) -> str | None:
    """Support test of a provider that runs everything."""
    return None


def unchanged(inputs: Inputs) -> State:
    """Set-up of a provider that takes the inputs as they are."""
    return inputs


@dataclass(frozen=True)
class Provider:
    """One implementation.

    `setup` is not timed (weights cast ahead, a model built); `run` is. `context` is entered once around a batch of
    calls. `supports` returns None, or why this provider cannot run these inputs. A `yardstick` is other work of known
    size, timed in the same rounds so that the rest can be held against it: its result is not compared.
    """

    name: str
    run: Callable[[State], Any]
    setup: Callable[[Inputs], State] = unchanged
    supports: Callable[[Inputs], str | None] = always
    outputs: Callable[[State, Any], list[Tensor]] = flatten
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    about: str = ""
    yardstick: bool = False


@dataclass(frozen=True)
class Case:
    """One workload. `peer` names the provider that ratios are quoted against: the official form."""

    operator: str
    name: str
    dtype: str
    shape: Mapping[str, int | float | str]
    make_inputs: Callable[[Setting], Inputs]
    providers: Callable[[torch.device], Sequence[Provider]]
    work: Callable[[Inputs], Work]
    reference: Callable[[Inputs], list[Tensor]]
    low_precision: Callable[[Inputs], list[Tensor]]
    peer: str
    tags: frozenset[str] = frozenset()
    tolerance: Tolerance = field(default_factory=Tolerance)
    repeat: bool = False  # each provider is called once more, and whether it gives the same bits is recorded

    @property
    def id(self) -> str:
        """`operator/name-dtype`, as `--filter` matches it."""
        return f"{self.operator}/{self.name}-{self.dtype}"
