"""What runs inside an energy window: batches of a call, on the host or on a GPU, with time to look at meters meanwhile."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Poll = Callable[[], None]
BATCH_S = 0.01
WAIT_S = 2e-4


@dataclass(frozen=True)
class Batch:
    """Calls that have ended, and the seconds in which the device worked on them."""

    calls: int
    busy_s: float


class Load(Protocol):
    """Runs batches. `poll` is called while the device works, so that looking at a meter leaves it no gap."""

    def run(self, poll: Poll) -> Batch: ...

    def drain(self) -> None: ...


class HostLoad:
    """Calls that have ended when they return; meters are read between batches."""

    def __init__(self, call: Callable[[], Any], calls: int, now: Callable[[], float] = time.perf_counter) -> None:
        self._call, self._calls, self._now = call, calls, now

    def run(self, poll: Poll) -> Batch:
        begin = self._now()
        for _ in range(self._calls):
            self._call()
        busy = self._now() - begin
        poll()
        return Batch(self._calls, busy)

    def drain(self) -> None:
        """Nothing is under way between batches."""


class DeviceLoad:
    """Calls that a GPU works on later: a batch is launched before the one ahead of it is awaited."""

    def __init__(self, call: Callable[[], Any], calls: int) -> None:
        self._call, self._calls = call, calls
        self._under_way: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def run(self, poll: Poll) -> Batch:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(self._calls):
            self._call()
        end.record()
        self._under_way.append((start, end))
        if len(self._under_way) < 2:
            poll()
            return Batch(0, 0.0)
        start, end = self._under_way.popleft()
        while not end.query():
            poll()
            time.sleep(WAIT_S)
        return Batch(self._calls, start.elapsed_time(end) * 1e-3)

    def drain(self) -> None:
        torch.cuda.synchronize()
        self._under_way.clear()


def load_for(device: torch.device, call: Callable[[], Any], seconds_per_call: float) -> Load:
    """Batches of about 10 ms of a call on a device."""
    calls = max(1, round(BATCH_S / seconds_per_call))
    return DeviceLoad(call, calls) if device.type == "cuda" else HostLoad(call, calls)
