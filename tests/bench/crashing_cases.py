"""A small model of one's own with a variant that ends the process, at its first call or later as CRASH_AT says."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from jepa_kernels.bench.cases import Case, model_case


def crashing(model: nn.Module) -> Callable[..., Any]:
    """The model, until the process is ended in its CRASH_AT-th call."""
    calls = 0

    def call(x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(os.environ["CRASH_AT"]):
            os.kill(os.getpid(), signal.SIGSEGV)
        return model(x)

    return call


def cases() -> list[Case]:
    """One case with three variants, the second of which crashes."""
    variants = {"torch-eager": lambda model: model, "crashes": crashing, "torch-again": lambda model: model}
    return [model_case("toy", lambda: nn.Linear(8, 8), lambda g: (torch.randn(4, 8, generator=g),), variants)]
