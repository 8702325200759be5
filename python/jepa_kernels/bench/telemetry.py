"""The state of the machine while a case is measured: power, clocks, temperature, throttling; and what it says of a result.

Between timed samples, never inside one, a row is added to the case's timeline: `Timeline.round` after each sample of the
rounds, `Timeline.sample` every 100 ms of an energy window or an idle phase.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

from .energy.errors import Unavailable
from .energy.meters import Meter
from .energy.nvml import EVENTS, Board

SAMPLE_S = 0.1
MAX_CLOCK_DIFFERENCE = 0.02
MAX_STEAL = 0.02
# Columns of a timeline beside `t_s`, `phase` and `provider`; a column that the machine does not have is null.
COLUMNS = ("power_w", "sm_mhz", "memory_mhz", "temperature_c", "utilisation", "events", "cpu_mhz", "steal", "load")
THERMAL = ("thermal_policy", "software_thermal", "hardware_thermal", "power_brake")
DECISIVE_EVENTS = 0x08 | 0x20 | 0x40 | 0x80

Values = dict[str, float | int | None]


class Probe(Protocol):
    """Looks at a machine: one row of the timeline, and the time it has been slowed down so far, by cause."""

    def row(self) -> Values: ...

    def throttled_ns(self) -> dict[str, int | None]: ...


class GpuProbe:
    """One GPU board through NVML."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def row(self) -> Values:
        return self._board.snapshot()

    def throttled_ns(self) -> dict[str, int | None]:
        return self._board.throttle_ns()


class CpuProbe:
    """Clock, steal and load of the processors that this process may use; power from a meter of the packages.

    The meter must be this probe's own: windows that share it would lose what is read here.
    """

    def __init__(
        self, meter: Meter | None = None, root: Path = Path("/"), now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._meter, self._now = meter, now
        self._stat, self._loadavg = root / "proc/stat", root / "proc/loadavg"
        cpus = sorted(os.sched_getaffinity(0))[:8]  # a few tell the clock of all
        folders = [root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq" for cpu in cpus]
        self._clocks = [folder for folder in folders if folder.is_file()]
        self._ticks = self._read_ticks()
        self._joules = self._read_joules()

    def row(self) -> Values:
        return {
            "power_w": self._power(),
            "cpu_mhz": fmean(int(clock.read_text()) * 1e-3 for clock in self._clocks) if self._clocks else None,
            "steal": self._steal(),
            "load": self._load(),
        }

    def throttled_ns(self) -> dict[str, int | None]:
        return {}

    def _read_ticks(self) -> tuple[int, int] | None:
        """Ticks taken by the hypervisor, and all ticks, since boot."""
        try:
            words = self._stat.read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return None
        ticks = [int(word) for word in words[:8]]  # user nice system idle iowait irq softirq steal
        return (ticks[7], sum(ticks)) if len(ticks) == 8 else None

    def _steal(self) -> float | None:
        """Share of the processors' time that the hypervisor took since the row before."""
        before, self._ticks = self._ticks, self._read_ticks()
        if before is None or self._ticks is None or self._ticks[1] <= before[1]:
            return None
        return (self._ticks[0] - before[0]) / (self._ticks[1] - before[1])

    def _load(self) -> float | None:
        try:
            return float(self._loadavg.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def _read_joules(self) -> tuple[float, float] | None:
        if self._meter is None:
            return None
        try:
            return self._meter.read(), self._now()
        except (Unavailable, OSError):
            return None

    def _power(self) -> float | None:
        """Mean power since the row before."""
        before, self._joules = self._joules, self._read_joules()
        if before is None or self._joules is None or self._joules[1] <= before[1]:
            return None
        return max(self._joules[0] - before[0], 0.0) / (self._joules[1] - before[1])


@dataclass
class Timeline:
    """Rows of one case. Times are seconds after `begin`, an instant of `now` that is `begin_unix_s` on the wall clock."""

    probe: Probe | None
    reason: str | None = None
    now: Callable[[], float] = time.perf_counter
    begin_unix_s: float = field(default_factory=time.time)
    begin: float = field(init=False)
    rows: list[tuple[float, str, str | None, Values]] = field(default_factory=list)
    throttled: dict[str, dict[str, float | None]] = field(default_factory=dict)  # provider -> cause -> seconds
    measured_s: dict[str, float] = field(default_factory=dict)  # provider -> seconds of its rounds

    def __post_init__(self) -> None:
        self.begin = self._last_s = self._mark_s = self.now()
        self._mark = self.probe.throttled_ns() if self.probe else {}

    def _add(self, phase: str, provider: str | None) -> None:
        if self.probe is not None:
            self.rows.append((self.now() - self.begin, phase, provider, self.probe.row()))

    def sample(self, phase: str, provider: str | None) -> None:
        """A row, unless the last one is younger than 100 ms."""
        instant = self.now()
        if instant - self._last_s >= SAMPLE_S:
            self._last_s = instant
            self._add(phase, provider)

    def round(self, provider: str | None) -> None:
        """A row after a provider's sample, and the throttling since the row before; None begins the rounds."""
        if self.probe is None:
            return
        before, self._mark = self._mark, self.probe.throttled_ns()
        elapsed, self._mark_s = self.now() - self._mark_s, self.now()
        if provider is None:
            return
        self._add("round", provider)
        self.measured_s[provider] = self.measured_s.get(provider, 0.0) + elapsed
        causes = self.throttled.setdefault(provider, {})
        for cause, value in self._mark.items():
            old = before.get(cause)
            if value is not None and old is not None:
                causes[cause] = (causes.get(cause) or 0.0) + max(value - old, 0) * 1e-9
            else:
                causes.setdefault(cause, None)

    def column(self, name: str, provider: str | None, phase: str) -> tuple[list[float], list[float]]:
        """Instants of `now` and values of one column."""
        found = [
            (self.begin + t, row[name])
            for t, p, who, row in self.rows
            if p == phase and who == provider and row.get(name) is not None
        ]
        return [t for t, _ in found], [float(v) for _, v in found if v is not None]

    def as_dict(self, provider: str, windows: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """The rows of a provider and of the idle phases, as a record of the store holds them; see `store`."""
        rows = [r for r in self.rows if r[2] in (provider, None)]
        return {
            "reason": self.reason if self.probe is None else None,
            "begin_unix_s": self.begin_unix_s,
            "t_s": [round(t, 4) for t, *_ in rows],
            "phase": [phase for _, phase, *_ in rows],
            **{name: _column(name, [row for *_, row in rows]) for name in COLUMNS},
            "event_names": {str(bit): name for bit, name in EVENTS.items()},
            "throttled_s": self.throttled.get(provider, {}),
            "windows": list(windows),
        }


def _column(name: str, rows: Sequence[Values]) -> list[float | None] | None:
    values = [row.get(name) for row in rows]
    if all(value is None for value in values):
        return None
    return [None if value is None else round(value, 3) for value in values]


def flags(timeline: Timeline, provider: str, peer: str | None) -> tuple[list[str], list[str]]:
    """What the machine's state says against a provider's times: decisive flags, and information.

    Thermal and hardware throttling, a stolen processor, and a GPU clock that differs from the peer's decide. The
    power cap alone does not: a board at its limit is a fact of that board.
    """
    decisive, told = [], []
    spent = timeline.measured_s.get(provider, 0.0)
    causes = timeline.throttled.get(provider, {})
    thermal = max((causes.get(cause) or 0.0 for cause in THERMAL), default=0.0)
    events = 0
    for value in timeline.column("events", provider, "round")[1]:
        events |= int(value)
    if thermal > 0 or events & DECISIVE_EVENTS:
        names = [name for bit, name in EVENTS.items() if bit & events & DECISIVE_EVENTS]
        share = f" in {min(thermal / spent, 1):.0%} of the rounds" if thermal and spent else ""
        decisive.append(f"throttled{share}" + (f" ({', '.join(names)})" if names else ""))
    capped = causes.get("power_cap") or 0.0
    if capped > 0 and spent > 0:
        told.append(f"at the power cap in {min(capped / spent, 1):.0%} of the rounds")
    decisive += _clock_flag(timeline, provider, peer)
    steal = timeline.column("steal", provider, "round")[1]
    if steal and fmean(steal) > MAX_STEAL:
        decisive.append(f"the hypervisor took {fmean(steal):.0%} of the processors' time")
    return decisive, told


def _clock_flag(timeline: Timeline, provider: str, peer: str | None) -> list[str]:
    if peer is None or peer == provider:
        return []
    ours, theirs = (timeline.column("sm_mhz", name, "round")[1] for name in (provider, peer))
    if not ours or not theirs or not median(theirs):
        return []
    difference = median(ours) / median(theirs) - 1
    if abs(difference) <= MAX_CLOCK_DIFFERENCE:
        return []
    return [f"GPU clock {difference:+.1%} against {peer}, limit {MAX_CLOCK_DIFFERENCE:.0%}"]
