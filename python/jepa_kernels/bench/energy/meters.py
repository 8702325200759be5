"""Meters: what counts joules, on a scale that only grows. Integration of power where a device has no counter."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from . import nvml, perf, rapl
from .errors import Unavailable

POLL_S = 2e-3  # how often a counter is asked while its next refresh is awaited
PERIOD_LIMIT_S = 2.0


class Meter(Protocol):
    """Joules since an arbitrary instant. `read` raises `Unavailable` when that can no longer be told.

    Between two readings at most `max_gap_s` may pass; `restart` begins anew after a longer pause.
    """

    source: str
    scope: str
    max_gap_s: float

    def restart(self) -> None: ...

    def read(self) -> float: ...


class NvmlCounter:
    """The energy counter of a board. A counter that falls was reset: no difference across that means anything."""

    source = "nvml-counter"
    max_gap_s = math.inf

    def __init__(self, board: nvml.Board) -> None:
        self.scope, self._read = board.energy_counter()
        self.restart()

    def restart(self) -> None:
        self._last = self._read()

    def read(self) -> float:
        value = self._read()
        if value < self._last:
            self._last = value
            raise Unavailable("the NVML energy counter went backwards: the driver was reset", "counter_reset")
        self._last = value
        return value


class PowerIntegral:
    """Power readings, each held until the next: an estimate for boards without a counter, and labelled so."""

    source = "nvml-power"
    max_gap_s = 0.04  # boards average their power over 25 ms or more

    def __init__(self, board: nvml.Board, now: Callable[[], float] = time.perf_counter) -> None:
        self.scope, self._power, self._now = board.power_scope(), board.power_w, now
        self._joules = 0.0
        self.restart()

    def restart(self) -> None:
        self._watts, self._instant = self._power(), self._now()

    def read(self) -> float:
        instant = self._now()
        self._joules += self._watts * (instant - self._instant)
        self._watts, self._instant = self._power(), instant
        return self._joules


def hold_integral(times: Sequence[float], watts: Sequence[float], begin: float, end: float) -> float | None:
    """Joules from `begin` to `end` of a power that keeps each sample's value until the next sample.

    Equal readings in a row count like any others. None where the samples do not reach back to `begin`.
    """
    first = bisect_right(times, begin) - 1
    if first < 0 or end < begin:
        return None
    joules, instant = 0.0, begin
    for index in range(first, len(times)):
        until = min(times[index + 1], end) if index + 1 < len(times) else end
        if until > instant:
            joules += watts[index] * (until - instant)
            instant = until
    return joules


@dataclass(frozen=True)
class Period:
    """How often a counter is refreshed, as measured; None where it did not move."""

    seconds: float | None
    changes: int


def update_period(
    meter: Meter,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Period:
    """Median time between changes of the counter, from up to ten of them."""
    begin, value, changes = now(), meter.read(), list[float]()
    while len(changes) < 11 and now() - begin < PERIOD_LIMIT_S:
        sleep(POLL_S)
        found = meter.read()
        if found != value:
            value = found
            changes.append(now())
    gaps = sorted(b - a for a, b in zip(changes, changes[1:], strict=False))
    return Period(gaps[len(gaps) // 2] if gaps else None, len(changes))


@dataclass
class Meters:
    """What can be measured for a device.

    `main` is the meter of the device itself: the board of a GPU, the packages of a CPU. `others` run along in the same
    windows and stay separate columns: packages and DRAM beside a GPU, DRAM beside a CPU. `missing` tells for every
    absent column why.
    """

    main: Meter | None
    reason: str | None = None
    others: tuple[Meter, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    board: nvml.Board | None = None
    flags: tuple[str, ...] = ()
    update_s: float | None = None


def device_uuid(device: torch.device) -> str:
    """The UUID of a CUDA device as CUDA itself gives it: right for every CUDA_VISIBLE_DEVICES and device order."""
    return str(torch.cuda.get_device_properties(device).uuid)


def open_meters(device: torch.device, rapl_root: Path = rapl.ROOT, perf_root: Path = perf.ROOT) -> Meters:
    """Every meter of a device, and for each absent one the reason."""
    cpu, missing = _open_rapl(rapl_root, perf_root)
    if device.type != "cuda":
        main = cpu.pop("CPU packages", None)
        reason = missing.pop("CPU packages", None)
        return Meters(main, reason, tuple(cpu.values()), missing)
    found = board_meters(device_uuid(device))
    found.others = tuple(cpu.values())
    found.missing |= missing
    return found


def open_cpu(scope: str, rapl_root: Path = rapl.ROOT, perf_root: Path = perf.ROOT) -> Meter:
    """The meter of `CPU packages` or `DRAM`: the powercap files, or where those cannot be read the perf event.

    Raises `Unavailable` with what mends the files, and why the event does not serve either.
    """
    opener = rapl.open_packages if scope == "CPU packages" else rapl.open_dram
    try:
        return opener(rapl_root)
    except Unavailable as files:
        try:
            return perf.open_counter(scope, perf_root)
        except Unavailable as event:
            fix = " or ".join(one.fix for one in (files, event) if one.fix) or None
            raise Unavailable(f"{files.what}; {event.what}", files.flag or event.flag, fix) from event


def _open_rapl(rapl_root: Path, perf_root: Path) -> tuple[dict[str, Meter], dict[str, str]]:
    found: dict[str, Meter] = {}
    missing: dict[str, str] = {}
    for scope in perf.EVENTS:
        try:
            found[scope] = open_cpu(scope, rapl_root, perf_root)
        except Unavailable as error:
            missing[scope] = error.reason
    return found, missing


def board_meters(uuid: str) -> Meters:
    """The meter of one GPU: its counter, or the integral of its power with the reason why the counter is not used."""
    try:
        board = nvml.open_board(uuid)
    except Unavailable as error:
        return Meters(None, error.reason, flags=(error.flag,) if error.flag else ())
    found = _board_meter(board)
    if found.main is not None and found.main.scope == nvml.SCOPES[1]:
        found.flags += ("module_scope",)
    if board.other_processes(computing=True):
        found.flags += ("other_processes",)
    return found


def _board_meter(board: nvml.Board) -> Meters:
    try:
        return Meters(NvmlCounter(board), board=board)
    except Unavailable as error:
        if error.flag == "mig":
            return Meters(None, error.reason, board=board, flags=("mig",))
        no_counter = error.reason
    try:
        estimate = PowerIntegral(board)
    except Unavailable as error:
        return Meters(None, f"no energy counter: {no_counter}; no power reading: {error.reason}", board=board)
    reason = f"integrated from power readings, for there is no counter: {no_counter}"
    return Meters(estimate, reason, board=board, flags=("power_integral",))


def packages_or_none() -> Meter | None:
    """A meter of the CPU packages for the timeline, of its own; None where there is none."""
    try:
        return open_cpu("CPU packages")
    except Unavailable:
        return None


def find_period(
    meters: Meters,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Measure how often the main counter is refreshed; one that stands still is no counter.

    The integral of power readings has no refreshes.
    """
    if meters.main is None or isinstance(meters.main, PowerIntegral):
        return
    try:
        period = update_period(meters.main, now, sleep)
    except Unavailable as error:
        meters.main, meters.reason = None, error.reason
        return
    meters.update_s = period.seconds
    if period.seconds is None:
        meters.reason = f"the {meters.main.source} counter changed {period.changes} times in {PERIOD_LIMIT_S:.0f} s"
        meters.main = None
