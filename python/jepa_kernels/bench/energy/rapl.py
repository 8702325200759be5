"""CPU energy from the powercap files of the kernel (RAPL of Intel and AMD): packages, and DRAM where there is a zone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import Unavailable

ROOT = Path("/sys/class/powercap")
MAX_PACKAGE_W = 1000.0  # where the kernel does not tell the most that a package may draw


class Zone:
    """One counter in microjoules that wraps at `max_energy_range_uj`; `joules` undoes the wraps.

    Between two readings at most one wrap can be seen. They must therefore follow within half the shortest time in
    which the zone can wrap, `max_gap_s`; a longer gap raises `Unavailable`, because joules may be missing.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.perf_counter) -> None:
        self._counter = folder / "energy_uj"
        self._now = now
        self._range = int((folder / "max_energy_range_uj").read_text())
        self.max_gap_s = self._range * 1e-6 / (2 * _max_power_w(folder))
        self._wrapped = 0
        self.restart()

    def restart(self) -> None:
        """Begin anew: what happened since the last reading is no longer asked for."""
        self._last, self._last_s = self._read(), self._now()

    def _read(self) -> int:
        return int(self._counter.read_text())

    def joules(self) -> float:
        """Joules on a scale that only grows."""
        value, instant = self._read(), self._now()
        gap, self._last_s = instant - self._last_s, instant
        if value < self._last:
            self._wrapped += self._range
        self._last = value
        if gap > self.max_gap_s:
            raise Unavailable(
                f"{self._counter} was not read for {gap:.0f} s and may wrap every {2 * self.max_gap_s:.0f} s", "wrap"
            )
        return (self._wrapped + value) * 1e-6


def _max_power_w(folder: Path) -> float:
    try:
        watts = int((folder / "constraint_0_max_power_uw").read_text()) * 1e-6
    except (OSError, ValueError):
        return MAX_PACKAGE_W
    return max(watts, MAX_PACKAGE_W)  # some firmware tells 0, or less than what the package draws


class RaplCounter:
    """Sum of some zones, in joules."""

    source = "rapl"

    def __init__(self, scope: str, zones: Sequence[Zone]) -> None:
        self.scope, self._zones = scope, zones
        self.max_gap_s = min(zone.max_gap_s for zone in zones)

    def restart(self) -> None:
        for zone in self._zones:
            zone.restart()

    def read(self) -> float:
        try:
            return sum(zone.joules() for zone in self._zones)
        except (OSError, ValueError) as error:
            raise Unavailable(f"RAPL cannot be read: {error}") from error


def open_packages(root: Path = ROOT, now: Callable[[], float] = time.perf_counter) -> RaplCounter:
    """The CPU packages. `psys` and the mmio duplicates overlap them and are left out.

    Raises `Unavailable` where there is none or reading is forbidden.
    """
    return _open(root, "CPU packages", "package", "intel-rapl:*", now)


def open_dram(root: Path = ROOT, now: Callable[[], float] = time.perf_counter) -> RaplCounter:
    """The memory modules, a subzone that server processors of Intel have. Raises as `open_packages`."""
    return _open(root, "DRAM", "dram", "intel-rapl:*:*", now)


def _open(root: Path, scope: str, label: str, pattern: str, now: Callable[[], float]) -> RaplCounter:
    folders = [zone for zone in sorted(root.glob(pattern)) if _name(zone).startswith(label)]
    if not folders:
        raise Unavailable(f"no RAPL {label} counter under {root} (virtual machines and containers rarely have one)")
    try:
        return RaplCounter(scope, [Zone(folder, now) for folder in folders])
    except PermissionError as error:
        what = f"root alone may read {error.filename} (since CVE-2020-8694)"
        fix = f"sudo chmod a+r {root}/intel-rapl:*/energy_uj (until the next boot)"
        raise Unavailable(what, "permission", fix) from error
    except (OSError, ValueError) as error:
        raise Unavailable(f"RAPL cannot be read: {error}") from error


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""
