"""RAPL through pretended powercap files: wraps are undone, overlapping zones left out, refusals told with their fix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jepa_kernels.bench.energy import rapl
from jepa_kernels.bench.energy.errors import Unavailable
from jepa_kernels.bench.energy.meters import open_meters

from .fake_nvml import VirtualTime

CPU = torch.device("cpu")
RANGE_UJ = 65_532_610_987  # of AMD server processors


def zone(root: Path, name: str, label: str, energy: int, wrap: int = RANGE_UJ) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(label + "\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{wrap}\n")
    return folder


def write(folder: Path, energy: int) -> None:
    (folder / "energy_uj").write_text(f"{energy}\n")


def test_wrap_inside_a_window_is_undone(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 2_000_000)
    meter = rapl.open_packages(tmp_path)
    before = meter.read()
    write(folder, 3_000_000)
    assert meter.read() - before == pytest.approx(5.0)


def test_two_wraps_with_a_reading_between_are_undone(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1_000_000)
    meter = rapl.open_packages(tmp_path)
    before = meter.read()
    for energy in (1_000_000, RANGE_UJ - 1_000_000, 1_000_000):
        write(folder, energy)
        meter.read()
    assert meter.read() - before == pytest.approx(RANGE_UJ * 1e-6 + 2.0)


def test_gap_in_which_a_wrap_could_hide_is_refused(tmp_path: Path) -> None:
    folder, time = zone(tmp_path, "intel-rapl:0", "package-0", 0), VirtualTime()
    meter = rapl.open_packages(tmp_path, time)
    assert meter.max_gap_s == pytest.approx(RANGE_UJ * 1e-6 / 2000)
    write(folder, 1_000_000)
    time.spend(meter.max_gap_s * 0.9)
    assert meter.read() == pytest.approx(1.0)
    time.spend(meter.max_gap_s * 1.1)
    with pytest.raises(Unavailable, match="was not read for") as caught:
        meter.read()
    assert caught.value.flag == "wrap"
    time.spend(1000.0)
    meter.restart()  # what a window does at its beginning
    assert meter.read() == pytest.approx(1.0)


def test_packages_are_summed_and_overlapping_zones_left_out(tmp_path: Path) -> None:
    zones = [zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", 100) for i in range(2)]
    zone(tmp_path, "intel-rapl:0:0", "core", 100)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:2", "psys", 100)
    dram = zone(tmp_path, "intel-rapl:0:1", "dram", 7)
    meters = open_meters(CPU, tmp_path, tmp_path / "none")
    assert meters.main is not None and meters.main.scope == "CPU packages" and meters.missing == {}
    (memory,) = meters.others
    before, memory_before = meters.main.read(), memory.read()
    for folder in zones:
        write(folder, 400_100)
    write(dram, 250_007)
    assert meters.main.read() - before == pytest.approx(0.8)
    assert memory.scope == "DRAM" and memory.read() - memory_before == pytest.approx(0.25)


def test_machine_without_counter_gives_a_reason_for_each_column(tmp_path: Path) -> None:
    meters = open_meters(CPU, tmp_path, tmp_path / "none")
    assert meters.main is None and meters.reason is not None and "no RAPL package counter" in meters.reason
    assert "no RAPL dram counter" in meters.missing["DRAM"]


def test_forbidden_counter_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def denied(self: Path, *arguments: object, **options: object) -> str:
        if self.name == "energy_uj":  # tests may run as root, whom no file mode stops
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", denied)
    meters = open_meters(CPU, tmp_path, tmp_path / "none")
    assert meters.main is None and meters.reason is not None
    assert str(folder / "energy_uj") in meters.reason and "sudo chmod a+r" in meters.reason


def test_counter_that_goes_away_is_told(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = rapl.open_packages(tmp_path)
    (folder / "energy_uj").unlink()
    with pytest.raises(Unavailable, match="RAPL cannot be read"):
        meter.read()


def test_power_limit_of_the_firmware_shortens_the_allowed_gap(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (folder / "constraint_0_max_power_uw").write_text("4000000000")
    assert rapl.open_packages(tmp_path).max_gap_s == pytest.approx(RANGE_UJ * 1e-6 / 8000)
