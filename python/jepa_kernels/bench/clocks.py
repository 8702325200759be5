"""The named clocks. Times of two different clocks are never compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..backends import BackendError
from .errors import BenchInputError

Call = Callable[[], Any]
NAMES = ("auto", "wall", "device_event", "device_graph")


class Clock(Protocol):
    """Measures the seconds that a number of consecutive calls take."""

    name: str

    def measure(self, call: Call, calls: int) -> float: ...


class WallClock:
    """`perf_counter_ns` around the calls, and around waiting for the device where there is one."""

    name = "wall"

    def __init__(
        self, now_ns: Callable[[], int] = time.perf_counter_ns, synchronise: Callable[[], Any] | None = None
    ) -> None:
        self._now_ns, self._synchronise = now_ns, synchronise

    def measure(self, call: Call, calls: int) -> float:
        if self._synchronise is not None:
            self._synchronise()
        start = self._now_ns()
        for _ in range(calls):
            call()
        if self._synchronise is not None:
            self._synchronise()
        return (self._now_ns() - start) * 1e-9


class DeviceEventClock:
    """CUDA events on the current stream: device time from the first to the last call, launches included."""

    name = "device_event"

    def measure(self, call: Call, calls: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


class DeviceGraphClock(DeviceEventClock):
    """CUDA events around replays of a captured graph of one call: device time without launches.

    A call that cannot be captured raises `BackendError`, so that its provider is told as unsupported by this clock.
    """

    name = "device_graph"

    def __init__(self) -> None:
        self._graphs: dict[Call, Call] = {}

    def measure(self, call: Call, calls: int) -> float:
        return super().measure(self.replay(call), calls)

    def replay(self, call: Call) -> Call:
        """The replay of the call's graph, captured the first time."""
        if call not in self._graphs:
            self._graphs[call] = self._capture(call)
        return self._graphs[call]

    def _capture(self, call: Call) -> Call:
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):
                for _ in range(3):  # allocations and tables outside the graph
                    call()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                call()
        except RuntimeError as error:
            raise BackendError(f"the call cannot be captured in a CUDA graph: {error}") from error
        return graph.replay


def clock_for(device: torch.device, name: str = "auto") -> Clock:
    """The clock of a device: `auto` is `device_event` on a GPU and `wall` on a CPU.

    Raises `BenchInputError` for an unknown name, and for a device clock on a CPU.
    """
    if name not in NAMES:
        raise BenchInputError(f"unknown clock {name!r}; use one of {', '.join(NAMES)}")
    if device.type == "cuda":
        if name == "wall":
            return WallClock(synchronise=torch.cuda.synchronize)
        return DeviceGraphClock() if name == "device_graph" else DeviceEventClock()
    if name in ("device_event", "device_graph"):
        raise BenchInputError(f"clock {name} needs a GPU, the run is on {device}; use auto or wall")
    return WallClock()
