"""Loads on a virtual clock that set the power of a pretended board, as a GPU or a CPU would run them."""

from __future__ import annotations

from dataclasses import dataclass

from jepa_kernels.bench.energy.loads import Batch, Poll
from jepa_kernels.bench.energy.meters import Meters, board_meters, find_period

from .fake_nvml import UUID, FakeBoard, VirtualTime


@dataclass
class VirtualLoad:
    """Batches of `calls` calls of `call_s` seconds at `watts`; polls every `poll_s` while a batch runs."""

    time: VirtualTime
    board: FakeBoard
    call_s: float = 1e-3
    calls: int = 10
    watts: float = 300.0
    idle_watts: float = 60.0
    gap_s: float = 0.0  # between batches, with the device idle
    poll_s: float = 1e-3

    def run(self, poll: Poll) -> Batch:
        self.board.draw(self.watts)
        left = self.calls * self.call_s
        while left > 1e-12:
            step = min(left, self.poll_s)
            self.time.spend(step)
            left -= step
            poll()
        if self.gap_s:
            self.board.draw(self.idle_watts)
            self.time.spend(self.gap_s)
        return Batch(self.calls, self.calls * self.call_s)

    def drain(self) -> None:
        self.board.draw(self.idle_watts)


def opened(board: FakeBoard) -> Meters:
    """The meters of the installed pretended board, its refreshes measured on the virtual clock."""
    meters = board_meters(UUID)
    find_period(meters, board.time, board.time.spend)
    return meters
