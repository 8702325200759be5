"""Energy of a case on a virtual clock: totals, marginals, intervals, cross-check and budget of several providers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest

from jepa_kernels.bench.cases import Work
from jepa_kernels.bench.energy.errors import Unavailable
from jepa_kernels.bench.energy.loads import Batch, Poll
from jepa_kernels.bench.energy.measure import EnergyOptions, Measured, Subject, fitting, measure, needed
from jepa_kernels.bench.energy.meters import Meters
from jepa_kernels.bench.energy.nvml import open_board
from jepa_kernels.bench.energy.result import EnergyReading, reading, relative_interval
from jepa_kernels.bench.energy_run import unit
from jepa_kernels.bench.telemetry import GpuProbe, Timeline

from .fake_nvml import UUID, FakeBoard, FakeLibrary, VirtualTime, install
from .test_cases import TOYS
from .virtual_loads import VirtualLoad, opened

WORK = Work(flops=3e9, bytes=1e6, samples=4, tokens=1024)
OPTIONS = EnergyOptions(windows=5, window_s=5.0, idle_s=10.0, settle_s=0.5)


@dataclass
class Bench:
    """A pretended board with two providers: `jk` draws 300 W for 1 ms a call, `torch` 240 W for 2 ms."""

    monkeypatch: pytest.MonkeyPatch
    board: FakeBoard = field(default_factory=lambda: FakeBoard(VirtualTime(), phase_s=0.03))

    def __post_init__(self) -> None:
        install(self.monkeypatch, FakeLibrary(self.board))
        self.time = self.board.time
        self.subjects = [self.subject("jk", 1e-3, 300.0), self.subject("torch", 2e-3, 240.0)]

    def subject(self, name: str, call_s: float, watts: float) -> Subject:
        return Subject(name, lambda: VirtualLoad(self.time, self.board, call_s=call_s, watts=watts, poll_s=2e-3))

    def run(self, options: EnergyOptions = OPTIONS, **more: object) -> tuple[Meters, Measured, Timeline]:
        meters = opened(self.board)
        timeline = Timeline(GpuProbe(open_board(UUID)), now=self.time)
        measured = measure(
            self.subjects, meters, options, timeline, now=self.time, sleep=self.time.spend, **more  # type: ignore[arg-type]
        )
        return meters, measured, timeline

    def readings(self, options: EnergyOptions = OPTIONS, **more: object) -> list[EnergyReading]:
        meters, measured, timeline = self.run(options, **more)
        return [reading(s, meters, measured, timeline, WORK, "clip") for s in self.subjects]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_total_and_marginal_joules_and_all_units(bench: Bench) -> None:
    ours, theirs = bench.readings()
    assert ours.joules_per_call == pytest.approx(0.300, rel=2e-3)
    assert ours.marginal_joules_per_call == pytest.approx(0.240, rel=5e-3)  # 60 W idle
    assert theirs.joules_per_call == pytest.approx(0.480, rel=2e-3)
    assert ours.per == pytest.approx(
        {"call": 0.3, "sample": 0.075, "token": 0.3 / 1024, "clip": 0.075}, rel=2e-3
    )
    assert ours.mean_w == pytest.approx(300.0, rel=2e-3) and ours.edp_js == pytest.approx(3e-4, rel=4e-3)
    assert ours.flops_per_joule == pytest.approx(1e10, rel=2e-3)
    assert (ours.status, ours.flags, ours.source, ours.scope) == ("ok", (), "nvml-counter", "GPU board")
    assert ours.ci95 is not None and ours.ci95[0] <= ours.joules_per_call <= ours.ci95[1]  # type: ignore[operator]
    assert ours.resolution is not None and ours.resolution < 2e-3
    assert len(ours.windows) == 5 and all(w["t1"] - w["t0"] >= 5.0 for w in ours.windows)
    assert ours.cross_check is not None and ours.cross_check["passed"]
    json.dumps(ours.as_dict(), allow_nan=False)


def test_two_estimates_that_differ_are_flagged(bench: Bench) -> None:
    meters, measured, timeline = bench.run()
    ours = bench.subjects[0]
    sound = reading(ours, meters, measured, timeline, WORK)
    assert sound.slope_joules_per_call == pytest.approx(sound.joules_per_call, rel=5e-3)
    ours.windows = {i: replace(w, joules=w.joules * 1.05) for i, w in ours.windows.items()}
    found = reading(ours, meters, measured, timeline, WORK)
    assert "estimates_differ" in found.flags and found.status == "inconclusive"


def test_step_case_is_told_per_step_and_clip(bench: Bench) -> None:
    meters, measured, timeline = bench.run()
    found = reading(bench.subjects[0], meters, measured, timeline, WORK, "step").per
    assert found["step"] == found["call"] and found["clip"] == pytest.approx(found["call"] / 4)


def test_unit_of_a_case_is_a_step_a_clip_or_an_image() -> None:
    units = {(case.operator, unit(case)) for case in TOYS}
    assert {("train_step", "step"), ("patch_embed", "clip"), ("patch_embed", "image"), ("ema_update", None)} <= units


def test_windows_of_the_providers_alternate_in_random_order(bench: Bench) -> None:
    bench.run()
    starts = sorted((w.begin_s, s.name) for s in bench.subjects for w in s.windows.values())
    names = [name for _, name in starts]
    rounds = [set(names[i : i + 2]) for i in range(0, len(names), 2)]
    assert all(found == {"jk", "torch"} for found in rounds)
    assert len({tuple(names[i : i + 2]) for i in range(0, len(names), 2)}) == 2


def test_counter_that_disagrees_with_the_power_readings_is_flagged(bench: Bench) -> None:
    bench.board.gain = 1.7
    ours, _ = bench.readings()
    assert "cross_check_failed" in ours.flags and ours.status == "inconclusive"
    assert ours.cross_check is not None and ours.cross_check["difference"] == pytest.approx(0.7, abs=0.02)


def test_reset_gives_null_and_the_other_provider_goes_on(bench: Bench) -> None:
    seen = 0

    class Resetting(VirtualLoad):
        def run(self, poll: Poll) -> Batch:
            nonlocal seen
            seen += 1
            if seen == 100:
                bench.board.offset_mj = 0.0
            return super().run(poll)

    bench.subjects[0].load = lambda: Resetting(bench.time, bench.board)
    ours, theirs = bench.readings()
    assert ours.joules_per_call is None and ours.flags == ("counter_reset",)
    assert ours.reason is not None and "went backwards" in ours.reason
    assert theirs.joules_per_call == pytest.approx(0.480, rel=2e-3)


def test_call_that_fails_in_a_window_is_told(bench: Bench) -> None:
    def fail() -> VirtualLoad:
        raise RuntimeError("out of something")

    bench.subjects[0].load = fail
    ours, theirs = bench.readings()
    assert ours.joules_per_call is None and ours.reason is not None and "out of something" in ours.reason
    assert theirs.joules_per_call is not None


def test_unsettled_and_changed_idle_power_are_flagged(bench: Bench) -> None:
    time, board = bench.time, bench.board
    meters, timeline = opened(board), Timeline(GpuProbe(open_board(UUID)), now=time)
    slept = 0.0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds
        board.draw(120.0 if slept < 5.0 else 60.0)
        time.spend(seconds)

    measured = measure(bench.subjects, meters, OPTIONS, timeline, now=time, sleep=sleep)
    found = reading(bench.subjects[0], meters, measured, timeline, WORK)
    assert {"idle_unsettled", "idle_changed"} <= set(found.flags)


def test_noisy_windows_are_repeated_and_a_wide_interval_is_inconclusive(bench: Bench) -> None:
    watts = iter([300.0, 200.0] * 100)
    bench.subjects = [
        Subject("jk", lambda: VirtualLoad(bench.time, bench.board, watts=next(watts), poll_s=2e-3)),
    ]
    (ours,) = bench.readings(replace(OPTIONS, windows=3, window_s=1.0))
    assert len(ours.windows) == 12  # four times the wanted number
    assert ours.status == "inconclusive" and "wide_interval" in ours.flags


def test_budget_cuts_windows_then_their_length_then_refuses(bench: Bench) -> None:
    for budget in (200.0, 60.0, 30.0, 12.0):
        chosen = fitting(OPTIONS, 0.1, 2, budget)
        assert chosen is not None
        assert needed(chosen.windows, chosen.window_s, chosen.idle_s, chosen.settle_s, 0.1, 2) <= budget
    assert fitting(OPTIONS, 0.1, 2, 200.0) == OPTIONS
    assert fitting(OPTIONS, 0.1, 2, 4.0) is None
    with pytest.raises(Unavailable, match="budget left 4 s"):
        bench.run(budget_s=4.0)
    begin = bench.time()
    ours, _ = bench.readings(budget_s=12.0)
    assert bench.time() - begin < 12.0 + 1.5  # measuring the refresh period is not part of the budget
    assert "short_windows" in ours.flags and ours.joules_per_call == pytest.approx(0.3, rel=5e-3)


def test_interrupt_keeps_the_windows_that_are_done(bench: Bench) -> None:
    def stop() -> bool:
        return len(bench.subjects[0].windows) >= 2

    ours, _ = bench.readings(stop=stop)
    assert len(ours.windows) == 2 and ours.joules_per_call == pytest.approx(0.3, rel=2e-3)
    assert ours.marginal_joules_per_call is None and ours.marginal_reason is not None
    assert "interrupted" in ours.marginal_reason


def test_total_of_all_parts_is_null_when_one_is_missing(bench: Bench) -> None:
    meters, measured, timeline = bench.run()
    meters.missing = {"DRAM": "no RAPL dram counter"}
    found = reading(bench.subjects[0], meters, measured, timeline, WORK)
    assert found.parts == {"DRAM": None} and found.all_parts_joules_per_call is None
    assert found.part_reasons == {"DRAM": "no RAPL dram counter"}


def test_parts_of_other_meters_are_counted_in_the_same_windows(bench: Bench) -> None:
    class Packages:
        """40 W at all times."""

        source, scope, max_gap_s = "rapl", "CPU packages", 10.0

        def restart(self) -> None:
            """It has no state."""

        def read(self) -> float:
            return 40.0 * bench.time()

    meters = opened(bench.board)
    meters.others = (Packages(),)
    timeline = Timeline(GpuProbe(open_board(UUID)), now=bench.time)
    measured = measure(bench.subjects, meters, OPTIONS, timeline, now=bench.time, sleep=bench.time.spend)
    found = reading(bench.subjects[0], meters, measured, timeline, WORK)
    assert found.parts["CPU packages"] == pytest.approx(0.040, rel=5e-3)
    assert found.all_parts_joules_per_call == pytest.approx(0.340, rel=3e-3)


def test_interval_of_one_window_is_unknown() -> None:
    assert relative_interval([1.0]) == float("inf")
    assert relative_interval([1.0, 1.0, 1.0]) == 0.0
    # t quantile 4.3027 with two degrees of freedom, standard error 1 / sqrt(3)
    assert relative_interval([9.0, 10.0, 11.0]) == pytest.approx(4.3027 / 3**0.5 / 10, rel=1e-4)
