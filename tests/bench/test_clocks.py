"""The named clocks and their choice."""

from __future__ import annotations

import pytest
import torch

from jepa_kernels.bench.clocks import DeviceEventClock, DeviceGraphClock, WallClock, clock_for
from jepa_kernels.bench.errors import BenchInputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "name", "kind"),
    [
        (CPU, "auto", WallClock),
        (CPU, "wall", WallClock),
        (GPU, "auto", DeviceEventClock),
        (GPU, "device_event", DeviceEventClock),
        (GPU, "device_graph", DeviceGraphClock),
        (GPU, "wall", WallClock),
    ],
)
def test_clock_of_a_device(device: torch.device, name: str, kind: type) -> None:
    clock = clock_for(device, name)
    assert type(clock) is kind and clock.name == (name if name != "auto" else {CPU: "wall", GPU: "device_event"}[device])


@pytest.mark.parametrize("name", ["device_event", "device_graph", "sundial"])
def test_clock_that_a_cpu_lacks_is_named(name: str) -> None:
    with pytest.raises(BenchInputError, match=name):
        clock_for(CPU, name)


def test_wall_clock_waits_for_the_device_at_both_ends() -> None:
    events: list[str] = []
    times = iter([1_000_000_000, 3_000_000_000])

    def now() -> int:
        events.append("time")
        return next(times)

    clock = WallClock(now, lambda: events.append("wait"))
    assert clock.measure(lambda: events.append("call"), 2) == 2.0
    assert events == ["wait", "time", "call", "call", "wait", "time"]


@pytest.mark.gpu
def test_graph_clock_times_replays_of_one_capture() -> None:
    x = torch.ones(1 << 20, device="cuda")
    calls = 0

    def call() -> torch.Tensor:
        nonlocal calls
        calls += 1
        return x.add_(1)

    clock = DeviceGraphClock()
    assert clock.measure(call, 100) > 0 and clock.measure(call, 100) > 0
    assert calls == 4  # three outside the graph, one captured
    assert float(x[0]) >= 200
