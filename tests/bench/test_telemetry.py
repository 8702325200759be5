"""The machine's state beside the times: which throttling decides, which is told, and the rows that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jepa_kernels.bench.energy.nvml import open_board
from jepa_kernels.bench.telemetry import CpuProbe, GpuProbe, Timeline, flags
from jepa_kernels.bench.timing import TimingOptions, interleave

from .fake_nvml import UUID, FakeBoard, FakeLibrary, VirtualTime, install
from .toys import VirtualMachine


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    found = FakeBoard(VirtualTime(), throttle_ns={74: 0, 75: 0, 269: 0, 270: 0, 271: 0})
    install(monkeypatch, FakeLibrary(found))
    return found


def rounds(board: FakeBoard, count: int = 10, **changes: object) -> Timeline:
    """Rounds of providers A and B; `changes` sets attributes of the board while one of them runs: `A_events=4`."""
    timeline = Timeline(GpuProbe(open_board(UUID)), now=board.time)
    timeline.round(None)
    for _ in range(count):
        for name in ("A", "B"):
            for key, value in changes.items():
                if key.startswith(name):
                    field = int(key[2:]) if key[2:].isdigit() else None
                    if field is None:
                        setattr(board, key[2:], value)
                    else:
                        board.throttle_ns[field] += value  # type: ignore[operator]
            board.time.spend(0.01)
            timeline.round(name)
    return timeline


def test_healthy_board_gives_no_flag(board: FakeBoard) -> None:
    timeline = rounds(board)
    assert flags(timeline, "A", "B") == ([], []) == flags(timeline, "B", "B")


@pytest.mark.parametrize("field", [75, 269, 270, 271])
def test_thermal_counter_that_rises_in_one_decides_against_that_one(board: FakeBoard, field: int) -> None:
    timeline = rounds(board, **{f"A_{field}": 5_000_000})
    assert flags(timeline, "A", "B") == (["throttled in 50% of the rounds"], [])
    assert flags(timeline, "B", "B") == ([], [])


def test_power_cap_in_both_is_information(board: FakeBoard) -> None:
    timeline = rounds(board, A_74=2_500_000, B_74=2_500_000)
    for name in ("A", "B"):
        assert flags(timeline, name, "B") == ([], ["at the power cap in 25% of the rounds"])


def test_event_bits_name_the_cause_where_nothing_is_counted(board: FakeBoard) -> None:
    board.throttle_ns = {}
    timeline = rounds(board, A_events=0x40, B_events=0x04)
    assert flags(timeline, "A", "B") == (["throttled (hardware thermal slowdown)"], [])
    assert flags(timeline, "B", "B") == ([], [])


@pytest.mark.parametrize(("mhz", "found"), [(1980, []), (1960, []), (1900, ["GPU clock -4.0% against B, limit 2%"])])
def test_clocks_that_differ_decide(board: FakeBoard, mhz: int, found: list[str]) -> None:
    timeline = rounds(board, A_sm_mhz=mhz, B_sm_mhz=1980)
    assert flags(timeline, "A", "B")[0] == found and flags(timeline, "B", "B")[0] == []


def test_throttling_before_the_rounds_is_nobodys(board: FakeBoard) -> None:
    timeline = Timeline(GpuProbe(open_board(UUID)), now=board.time)
    board.throttle_ns[270] += 10**9  # while the providers warmed up
    timeline.round(None)
    board.time.spend(0.01)
    timeline.round("A")
    assert flags(timeline, "A", None) == ([], [])


def test_record_has_the_provider_and_the_idle_rows(board: FakeBoard) -> None:
    timeline = rounds(board, count=3)
    for _ in range(30):
        board.time.spend(0.04)
        timeline.sample("idle", None)
    found = json.loads(json.dumps(timeline.as_dict("A"), allow_nan=False))
    assert found["phase"] == ["round"] * 3 + ["idle"] * 10  # every 120 ms: at most every 100
    assert found["t_s"] == sorted(found["t_s"]) and len(found["power_w"]) == 13
    assert found["cpu_mhz"] is None and found["event_names"]["64"] == "hardware thermal slowdown"
    assert found["throttled_s"]["hardware_thermal"] == 0.0


def test_absent_probe_is_told() -> None:
    timeline = Timeline(None, "no NVML here")
    timeline.round(None)
    timeline.round("A")
    found = timeline.as_dict("A")
    assert found["reason"] == "no NVML here" and found["t_s"] == [] and flags(timeline, "A", "B") == ([], [])


def machine(root: Path, steal: int, mhz: int | None = None) -> None:
    """A /proc and /sys of a machine with one processor that has lived 1000 ticks and `steal` more."""
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text(f"cpu 400 0 100 500 0 0 0 {steal} 0 0\ncpu0 1 1\n")
    (root / "proc/loadavg").write_text("1.25 0.8 0.5 1/100 4242\n")
    if mhz is not None:
        for cpu in range(64):
            folder = root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "scaling_cur_freq").write_text(f"{mhz * 1000}\n")


def test_cpu_rows_tell_clock_load_and_steal(tmp_path: Path) -> None:
    machine(tmp_path, 0, 3400)
    probe = CpuProbe(root=tmp_path)
    machine(tmp_path, 250, 3400)
    assert probe.row() == {"power_w": None, "cpu_mhz": 3400.0, "steal": 1.0, "load": 1.25}
    assert probe.row()["steal"] is None  # no tick since


def test_stolen_processor_decides(tmp_path: Path) -> None:
    machine(tmp_path, 0)
    timeline = Timeline(CpuProbe(root=tmp_path))
    timeline.round(None)
    (tmp_path / "proc/stat").write_text("cpu 490 0 100 500 0 0 0 10 0 0\n")
    timeline.round("A")
    assert flags(timeline, "A", None) == (["the hypervisor took 10% of the processors' time"], [])
    assert timeline.as_dict("A")["cpu_mhz"] is None


def test_rounds_are_watched_outside_of_the_timing() -> None:
    virtual, seen = VirtualMachine(), list[str | None]()
    timed = virtual.timed(a=1e-3, b=2e-3)

    def watch(name: str | None) -> None:
        seen.append(name)
        virtual.now_ns += 10**8  # looking takes 100 ms, which no sample may contain

    interleave(timed, virtual.clock(), TimingOptions(rounds=4), watch=watch, now=virtual.seconds)
    assert seen[0] is None and sorted(seen[1:]) == ["a"] * 4 + ["b"] * 4  # type: ignore[type-var]
    for one, expected in zip(timed, (1e-3, 2e-3), strict=True):
        assert list(one.samples.values()) == pytest.approx([expected] * 4)
