"""CPU energy from the kernel's perf events, the same RAPL counters where the powercap files are closed or absent.

A user may open them with `kernel.perf_event_paranoid` at 0 or the capability CAP_PERFMON; the files are root's since
CVE-2020-8694. The kernel undoes the wraps of the counters itself.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import platform
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import Unavailable

ROOT = Path("/sys/bus/event_source/devices/power")
EVENTS = {"CPU packages": "energy-pkg", "DRAM": "energy-ram"}
ATTRIBUTE_BYTES = 64  # PERF_ATTR_SIZE_VER0 of linux/perf_event.h
SYSCALL = {"x86_64": 298, "aarch64": 241}  # perf_event_open
CLOSE_ON_EXEC = 8
FIX = "sudo sysctl kernel.perf_event_paranoid=0 (until the next boot)"


class PerfCounter:
    """Sum of one event over the packages, in joules since it was opened."""

    source = "rapl-perf"
    max_gap_s = math.inf

    def __init__(self, scope: str, descriptors: Sequence[int], scale: float) -> None:
        self.scope, self._descriptors, self._scale = scope, descriptors, scale

    def restart(self) -> None:
        """Nothing to do: the kernel keeps the counters whole."""

    def read(self) -> float:
        try:
            return sum(struct.unpack("<Q", os.read(one, 8))[0] for one in self._descriptors) * self._scale
        except (OSError, struct.error) as error:
            raise Unavailable(f"the energy event cannot be read: {error}") from error

    def __del__(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


def open_event(kind: int, config: int, cpu: int, pid: int = -1) -> int:
    """A descriptor of `perf_event_open` for all that runs on a processor; raises OSError."""
    number = SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"unknown on {platform.machine()}")
    attribute = struct.pack("<IIQ", kind, ATTRIBUTE_BYTES, config).ljust(ATTRIBUTE_BYTES, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_long(number), ctypes.c_char_p(attribute), ctypes.c_int(pid), ctypes.c_int(cpu))
    found = int(libc.syscall(*arguments, ctypes.c_int(-1), ctypes.c_ulong(CLOSE_ON_EXEC)))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def open_counter(scope: str, root: Path = ROOT, opener: Callable[[int, int, int], int] = open_event) -> PerfCounter:
    """The counter of `CPU packages` or `DRAM`. Raises `Unavailable` where there is none or opening is forbidden."""
    name, descriptors = EVENTS[scope], list[int]()
    try:
        kind = int((root / "type").read_text())
        config = _config((root / "events" / name).read_text())
        scale = float((root / "events" / f"{name}.scale").read_text())
        cpus = _processors((root / "cpumask").read_text())
    except (OSError, ValueError) as error:
        raise Unavailable(f"no perf event {name}") from error
    try:
        for cpu in cpus:
            descriptors.append(opener(kind, config, cpu))
    except OSError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EPERM):
            raise Unavailable(f"the perf event {name} is not permitted", "permission", FIX) from error
        raise Unavailable(f"the perf event {name} cannot be opened: {error.strerror}") from error
    return PerfCounter(scope, descriptors, scale)


def _config(text: str) -> int:
    """The number of `event=0x02`."""
    return int(text.strip().removeprefix("event="), 0)


def _processors(text: str) -> list[int]:
    """One processor a package: `0,18` or `0-1`."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
