"""Energy per call from the machine's own counters: NVML for a GPU board, RAPL for CPU packages.

A value that cannot be measured is None with a reason, never 0. This is device energy, not wall-plug energy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

RAPL_ROOT = Path("/sys/class/powercap")
# NVML refreshes its counter every 10-100 ms, RAPL every 1 ms: both ends of a window are uncertain by that.
WINDOW_S = {"nvml": 5.0, "rapl": 1.0}


@dataclass(frozen=True)
class EnergyReading:
    """Joules per call over one window, or None and the reason why there is no value."""

    joules_per_call: float | None
    reason: str | None
    source: str | None = None
    scope: str | None = None
    window_s: float | None = None
    calls: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Meter(Protocol):
    """A counter of joules that only grows, apart from a wrap that `joules_between` handles."""

    source: str
    scope: str

    def read(self) -> list[int]: ...

    def joules_between(self, before: list[int], after: list[int]) -> float: ...


class RaplMeter:
    """Sum over CPU packages of the RAPL counters, in microjoules; each wraps at `max_energy_range_uj`.

    Subzones, `psys` and the mmio duplicates overlap the packages and are left out. One wrap in a window is
    undone exactly; the windows used here are seconds, the shortest wrap is minutes.
    """

    source, scope = "rapl", "CPU packages"

    def __init__(self, zones: list[Path]) -> None:
        self._counters = [zone / "energy_uj" for zone in zones]
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]

    def read(self) -> list[int]:
        return [int(counter.read_text()) for counter in self._counters]

    def joules_between(self, before: list[int], after: list[int]) -> float:
        spans = zip(before, after, self._ranges, strict=True)
        return sum((b - a) % wrap for a, b, wrap in spans) * 1e-6


class NvmlMeter:
    """`nvmlDeviceGetTotalEnergyConsumption` of one GPU board, in millijoules since the driver was loaded."""

    source, scope = "nvml", "GPU board"

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def read(self) -> list[int]:
        return [int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))]

    def joules_between(self, before: list[int], after: list[int]) -> float:
        if after[0] < before[0]:
            raise RuntimeError("the NVML energy counter went backwards: the driver was reset")
        return (after[0] - before[0]) * 1e-3


def open_meter(device: torch.device, rapl_root: Path = RAPL_ROOT) -> tuple[Meter | None, str | None]:
    """The energy counter of a device, or None and why there is none."""
    return _open_nvml(device) if device.type == "cuda" else _open_rapl(rapl_root)


def _open_rapl(root: Path) -> tuple[Meter | None, str | None]:
    zones = []
    for zone in sorted(root.glob("intel-rapl:*")):
        name = zone / "name"
        if name.is_file() and name.read_text().strip().startswith("package"):
            zones.append(zone)
    if not zones:
        return None, f"no RAPL package counter under {root} (virtual machines rarely have one)"
    try:
        meter = RaplMeter(zones)
        meter.read()
    except PermissionError as error:
        return None, f"{error.filename} is readable by root only"
    except (OSError, ValueError) as error:
        return None, f"RAPL cannot be read: {error}"
    return meter, None


def _open_nvml(device: torch.device) -> tuple[Meter | None, str | None]:
    try:
        import pynvml
    except ModuleNotFoundError:
        return None, "nvidia-ml-py is not installed (pip install 'jepa-kernels[bench]')"
    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        meter = NvmlMeter(pynvml, handle)
        meter.read()
    except (pynvml.NVMLError, AttributeError) as error:
        return None, f"NVML gives no energy counter: {error}"
    return meter, None


def measure_energy(
    meter: Meter,
    call: Callable[[], Any],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    *,
    synchronise: Callable[[], Any] = lambda: None,
    window_s: float | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> EnergyReading:
    """Joules per call over one window of back-to-back calls; idle power is not subtracted."""
    window = WINDOW_S[meter.source] if window_s is None else window_s
    try:
        with context():
            synchronise()
            before, begin, calls, elapsed = meter.read(), now(), 0, 0.0
            while elapsed < window:
                call()
                synchronise()
                calls += 1
                elapsed = now() - begin
            after = meter.read()
        joules = meter.joules_between(before, after)
    except Exception as error:  # energy is an extra: its failure is told, and the times stand
        return EnergyReading(None, f"reading {meter.source} failed: {error}")
    if joules <= 0:
        return EnergyReading(None, f"the {meter.source} counter did not move in {elapsed:.2f} s")
    return EnergyReading(joules / calls, None, meter.source, meter.scope, elapsed, calls)
