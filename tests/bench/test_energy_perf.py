"""RAPL through perf events: where the powercap files are closed, and the refusals with their fix."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jepa_kernels.bench.energy import perf
from jepa_kernels.bench.energy.errors import Unavailable
from jepa_kernels.bench.energy.meters import open_meters, update_period

SCALE = 2.0**-32  # joules a count, as Intel's and AMD's processors have it


def pmu(root: Path, *events: str, cpumask: str = "0") -> Path:
    """The files that the kernel shows for the power events."""
    (root / "events").mkdir(parents=True)
    (root / "type").write_text("23\n")
    (root / "cpumask").write_text(cpumask + "\n")
    for index, name in enumerate(events):
        (root / "events" / name).write_text(f"event=0x{index + 2:02x}\n")
        (root / "events" / f"{name}.scale").write_text(f"{SCALE!r}\n")
    return root


class Pretended:
    """Counters in files: `joules[(event, processor)]` is what the kernel would say; each reading starts at the front."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.joules = folder, dict[tuple[int, int], float]()
        self.asked = list[tuple[int, int, int]]()

    def open(self, kind: int, config: int, cpu: int) -> int:
        self.asked.append((kind, config, cpu))
        self.joules[config, cpu] = 0.0
        return os.open(self.path(config, cpu), os.O_RDONLY)

    def path(self, config: int, cpu: int) -> Path:
        path = self.folder / f"{config}-{cpu}"
        if not path.exists():
            path.write_bytes(struct.pack("<Q", 0))
        return path

    def read(self, descriptor: int, size: int) -> bytes:
        return os.pread(descriptor, size, 0)

    def draw(self, config: int, cpu: int, joules: float) -> None:
        self.joules[config, cpu] += joules
        self.path(config, cpu).write_bytes(struct.pack("<Q", round(self.joules[config, cpu] / SCALE)))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    pretended = Pretended(tmp_path)
    monkeypatch.setattr(perf.os, "read", pretended.read)
    return pretended


def test_packages_of_two_sockets_are_summed_in_joules(tmp_path: Path, kernel: Pretended) -> None:
    counter = perf.open_counter("CPU packages", pmu(tmp_path / "power", "energy-pkg", cpumask="0,18"), kernel.open)
    assert kernel.asked == [(23, 2, 0), (23, 2, 18)]
    before = counter.read()
    kernel.draw(2, 0, 3.0)
    kernel.draw(2, 18, 1.5)
    assert counter.read() - before == pytest.approx(4.5)
    assert (counter.source, counter.scope) == ("rapl-perf", "CPU packages")


def test_events_serve_where_the_files_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended(tmp_path)
    real = perf.open_counter

    def opened(scope: str, root: Path, opener: Callable[[int, int, int], int] = pretended.open) -> perf.PerfCounter:
        return real(scope, root, opener)

    monkeypatch.setattr(perf, "open_counter", opened)
    found = open_meters(torch.device("cpu"), tmp_path / "no files", pmu(tmp_path / "power", "energy-pkg", "energy-ram"))
    assert found.main is not None and found.main.source == "rapl-perf" and found.missing == {}
    assert [meter.scope for meter in found.others] == ["DRAM"]


@pytest.mark.parametrize(("code", "words"), [(errno.EACCES, "perf_event_paranoid=0"), (errno.ENODEV, "No such device")])
def test_refusal_names_the_fix(tmp_path: Path, code: int, words: str) -> None:
    def refuses(_kind: int, _config: int, _cpu: int) -> int:
        raise OSError(code, os.strerror(code))

    with pytest.raises(Unavailable) as caught:
        perf.open_counter("CPU packages", pmu(tmp_path / "power", "energy-pkg"), refuses)
    assert words in caught.value.reason


def test_machine_without_the_events_tells_both_reasons(tmp_path: Path) -> None:
    found = open_meters(torch.device("cpu"), tmp_path / "none", tmp_path / "none")
    assert found.main is None and found.reason is not None
    assert "no RAPL package counter" in found.reason and "no perf event energy-pkg" in found.reason


@pytest.mark.parametrize(("text", "expected"), [("0", [0]), ("0,18", [0, 18]), ("0-1,4", [0, 1, 4])])
def test_processor_lists(text: str, expected: list[int]) -> None:
    assert perf._processors(text + "\n") == expected


def test_the_kernel_takes_the_call(tmp_path: Path) -> None:
    """The software clock of this process (type 1, event 1, nanoseconds) through the same call and the same reader."""
    try:
        descriptor = perf.open_event(1, 1, -1, pid=0)
    except OSError as error:
        pytest.skip(f"perf events are not permitted here: {error}")
    counter = perf.PerfCounter("test", [descriptor], 1e-9)
    before, begin = counter.read(), time.process_time()
    while time.process_time() - begin < 0.05:
        pass
    assert 0.03 < counter.read() - before < 5.0
    assert update_period(counter).seconds is not None
