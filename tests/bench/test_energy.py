"""Energy counters: wraps are undone, and what is missing is None with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jepa_kernels.bench.energy import NvmlMeter, RaplMeter, measure_energy, open_meter

CPU = torch.device("cpu")


def zone(root: Path, name: str, label: str, energy: int, wrap: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(label + "\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{wrap}\n")
    return folder


def test_packages_are_summed_and_overlapping_zones_left_out(tmp_path: Path) -> None:
    zones = [zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", 100) for i in range(2)]
    zone(tmp_path, "intel-rapl:0:0", "core", 100)
    zone(tmp_path, "intel-rapl:2", "psys", 100)
    meter, reason = open_meter(CPU, tmp_path)
    assert reason is None and isinstance(meter, RaplMeter)
    before = meter.read()
    for folder in zones:
        (folder / "energy_uj").write_text("400100")
    assert meter.joules_between(before, meter.read()) == pytest.approx(0.8)


def test_wrap_inside_a_window_is_undone(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    meter = RaplMeter([folder])
    before = meter.read()
    (folder / "energy_uj").write_text("100000")
    assert meter.joules_between(before, meter.read()) == pytest.approx(0.2)


def test_joules_are_divided_by_the_calls_of_the_window(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    clock = iter(range(100))
    spent = 0

    def call() -> None:
        nonlocal spent
        spent += 2000
        (folder / "energy_uj").write_text(str(spent))

    reading = measure_energy(RaplMeter([folder]), call, window_s=5, now=lambda: float(next(clock)))
    assert reading.calls == spent // 2000
    assert reading.joules_per_call == pytest.approx(2e-3)


def test_machine_without_counter_gives_a_reason(tmp_path: Path) -> None:
    meter, reason = open_meter(CPU, tmp_path)
    assert meter is None and reason is not None and "no RAPL package counter" in reason


def test_unreadable_counter_gives_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)

    def denied(self: RaplMeter) -> list[int]:
        raise PermissionError(13, "Permission denied", "energy_uj")

    monkeypatch.setattr(RaplMeter, "read", denied)
    meter, reason = open_meter(CPU, tmp_path)
    assert meter is None and reason == "energy_uj is readable by root only"


def test_counter_that_stands_still_is_not_zero_joules(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    reading = measure_energy(RaplMeter([folder]), lambda: None, window_s=0.001)
    assert reading.joules_per_call is None and reading.reason is not None and "did not move" in reading.reason


class FakeNvml:
    """Total energy in millijoules, from a list."""

    def __init__(self, *values: int) -> None:
        self._values = iter(values)

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: object) -> int:
        return next(self._values)


def test_nvml_counts_millijoules() -> None:
    reading = measure_energy(NvmlMeter(FakeNvml(1000, 4000), None), lambda: None, window_s=1.5, now=Ticks())
    assert (reading.joules_per_call, reading.calls, reading.source) == (pytest.approx(1.5), 2, "nvml")


class Ticks:
    """A clock that moves one second a reading."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


def test_nvml_counter_that_goes_backwards_is_invalid() -> None:
    reading = measure_energy(NvmlMeter(FakeNvml(4000, 1000), None), lambda: None, window_s=1.5, now=Ticks())
    assert reading.joules_per_call is None and reading.reason is not None and "backwards" in reading.reason
    assert json.dumps(reading.as_dict())
