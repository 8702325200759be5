"""Virtual time, and cases whose providers only spend it: the harness is tested without any real speed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jepa_kernels.bench.cases.base import Case, Provider, Setting, Work
from jepa_kernels.bench.ceilings import Ceilings
from jepa_kernels.bench.clocks import WallClock
from jepa_kernels.bench.timing import Timed

CEILINGS = Ceilings("cpu", 1e10, 1 << 28, 1 << 25, 1e11, 4e11, 1024)


@dataclass
class VirtualMachine:
    """A clock that only moves when work is spent on it; the machine may slow down and be noisy."""

    noise: float = 0.0
    drift_per_s: float = 0.0
    seed: int = 0
    now_ns: int = 0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def clock(self) -> WallClock:
        return WallClock(lambda: self.now_ns)

    def seconds(self) -> float:
        return self.now_ns * 1e-9

    def work(self, seconds: float) -> Callable[[], None]:
        """A call that takes about `seconds`."""

        def call() -> None:
            slow = 1 + self.drift_per_s * self.seconds()
            self.now_ns += round(seconds * slow * (1 + self.random.uniform(0, self.noise)) * 1e9)

        return call

    def timed(self, **durations: float) -> list[Timed]:
        return [Timed(name, self.work(seconds)) for name, seconds in durations.items()]


def toy_case(
    run: Callable[[Tensor], Tensor] | None = None,
    *,
    name: str = "double",
    providers: Sequence[Provider] | None = None,
) -> Case:
    """y = 2x on eight numbers; `torch-add` is the peer, and `jk-cpu` runs what is given."""
    listed = providers or [
        Provider("jk-cpu", run or (lambda x: x * 2)),
        Provider("torch-add", lambda x: x + x),
    ]

    def make_inputs(setting: Setting) -> Tensor:
        return torch.rand(8, generator=setting.generator()) + 0.5

    return Case(
        operator="toy",
        name=name,
        dtype="fp32",
        shape={"elements": 8},
        make_inputs=make_inputs,
        providers=lambda _device: listed,
        work=lambda _x: Work(flops=8, bytes=64, samples=1, tokens=8),
        reference=lambda x: [x.double() * 2],
        low_precision=lambda x: [x * 2],
        peer="torch-add",
        tags=frozenset({"quick", "full"}),
    )
