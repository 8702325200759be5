"""A small model of one's own, three times; the process kills itself within the case that KILL_IN names."""

from __future__ import annotations

import os
import signal

import torch
from torch import nn

from jepa_kernels.bench.cases import Case, model_case


class Toy(nn.Linear):
    """A linear layer that may end the process at its hundredth call."""

    def __init__(self, name: str) -> None:
        super().__init__(8, 8)
        self.name, self.calls = name, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 100 and os.environ.get("KILL_IN") == self.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def cases() -> list[Case]:
    """One case a letter."""
    variants = {"torch-eager": lambda model: model, "torch-compiled-not": lambda model: model}
    return [
        model_case(f"toy-{name}", lambda name=name: Toy(name), lambda g: (torch.randn(4, 8, generator=g),), variants)
        for name in "abc"
    ]
