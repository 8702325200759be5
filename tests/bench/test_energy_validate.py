"""The checks of a meter: a sound one passes, and each kind of unsound one fails the check that is meant for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from jepa_kernels.bench import doctor
from jepa_kernels.bench.energy import Meters
from jepa_kernels.bench.energy.nvml import open_board
from jepa_kernels.bench.energy.validate import Validation, linearity, validate
from jepa_kernels.bench.energy.window import Window
from jepa_kernels.bench.telemetry import GpuProbe, Timeline

from .fake_nvml import UUID, FakeBoard, FakeLibrary, VirtualTime, install
from .virtual_loads import VirtualLoad, opened


def checked(
    monkeypatch: pytest.MonkeyPatch, load: Callable[[FakeBoard], VirtualLoad], gain: float = 1.0
) -> dict[str, Validation]:
    board = FakeBoard(VirtualTime(), gain=gain)
    install(monkeypatch, FakeLibrary(board))
    timeline = Timeline(GpuProbe(open_board(UUID)), now=board.time)
    found = validate(opened(board), lambda: load(board), timeline, board.time, board.time.spend)
    return {v.name: v for v in found}


def steady(board: FakeBoard) -> VirtualLoad:
    return VirtualLoad(board.time, board, call_s=1.3e-3, calls=8, poll_s=2e-3)


def test_sound_meter_passes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checked(monkeypatch, steady)
    assert set(found) == {"linearity", "A against A", "cross-check", "idle"}
    assert all(v.passed for v in found.values()), found


def test_counter_that_counts_too_much_fails_the_cross_check_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checked(monkeypatch, steady, gain=1.7)
    assert {name for name, v in found.items() if not v.passed} == {"cross-check"}


def test_load_that_changes_with_time_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    watts = 100.0

    def heating(board: FakeBoard) -> VirtualLoad:
        nonlocal watts
        watts *= 1.1
        return VirtualLoad(board.time, board, watts=watts, poll_s=2e-3)

    assert checked(monkeypatch, heating)["linearity"].passed is False


def windows(*joules: float) -> list[Window]:
    return [Window(0.0, n, j, n, 1.0, 1.0, 0.0) for n, j in zip((1.0, 2.0, 4.0, 8.0), joules, strict=True)]


def test_energy_without_calls_breaks_linearity() -> None:
    assert linearity(windows(300, 600, 1200, 2400), 0.1).passed is True
    assert linearity(windows(320, 620, 1220, 2420), 0.1).passed is True  # 20 J, less than one refresh
    assert linearity(windows(350, 650, 1250, 2450), 0.1).passed is False


def test_doctor_tells_why_there_is_nothing_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa_kernels.bench.energy.open_meters", lambda device: Meters(None, "no counter here"))
    (found,) = doctor.check_energy(torch.device("cpu"))
    assert (found.status, found.reason) == ("missing", "no counter here")


def test_doctor_lists_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Validation("linearity", "bent", False), Validation("idle", "60 W", True), Validation("cross-check", "-", None)]
    monkeypatch.setattr(doctor, "validate", lambda *_: made)
    monkeypatch.setattr("jepa_kernels.bench.energy.open_meters", lambda device: Meters(None))
    monkeypatch.setattr("jepa_kernels.bench.energy.find_period", lambda meters: setattr(meters, "main", object()))
    found = doctor.check_energy(torch.device("cpu"))
    assert [f.status for f in found] == ["limited", "ok", "missing"]
    assert "does not add up" in str(found[0].reason)
    assert not doctor.summary(found)["can_measure"]["energy"]  # a check is no meter
