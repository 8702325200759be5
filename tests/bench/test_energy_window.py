"""Energy windows on a virtual clock: exact for every phase of the counter; failing counters give null and a flag."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jepa_kernels.bench.energy.errors import Unavailable
from jepa_kernels.bench.energy.meters import Meters, NvmlCounter, PowerIntegral, hold_integral, update_period
from jepa_kernels.bench.energy.nvml import open_board
from jepa_kernels.bench.energy.window import idle_watts, run_window

from .fake_nvml import UUID, FakeBoard, FakeLibrary, VirtualTime, install
from .virtual_loads import VirtualLoad, opened

PHASES = 1000


def meters_of(board: FakeBoard, update_s: float | None = 0.1) -> Meters:
    return Meters(NvmlCounter(open_board(UUID)), update_s=update_s)


def test_error_is_below_half_a_percent_at_two_seconds_for_a_thousand_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    worst = unaligned = 0.0
    for index in range(PHASES):
        time = VirtualTime()
        board = FakeBoard(time, phase_s=0.1 * index / PHASES)
        install(monkeypatch, FakeLibrary(board))
        load = VirtualLoad(time, board, call_s=1.3e-3, calls=8)
        before, begin = board.counter_mj(), time()
        window = run_window(meters_of(board), load, window_s=2.0, settle_s=0.2, now=time)
        assert window.seconds == pytest.approx(2.05, abs=0.06)
        worst = max(worst, abs(window.joules / window.calls / (300.0 * 1.3e-3) - 1))
        # The same window with the counter read at its two ends, as tools do that do not wait for a refresh:
        board.draw(300.0)
        before, begin = board.counter_mj(), time()
        time.spend(2.0 + 0.1 * (index % 7) / 7)
        unaligned = max(unaligned, abs((board.counter_mj() - before) * 1e-3 / (300.0 * (time() - begin)) - 1))
    print(f"worst of {PHASES} phases: aligned {worst:.3%}, unaligned {unaligned:.3%}")
    assert worst <= 0.005
    assert unaligned > 0.02  # what alignment removes


@pytest.mark.parametrize("call_s", [0.03, 0.25, 1.0])
def test_long_calls_are_aligned_too(monkeypatch: pytest.MonkeyPatch, call_s: float) -> None:
    """A training step is longer than a refresh: the counter is looked at while the device works."""
    time = VirtualTime()
    board = FakeBoard(time, phase_s=0.037)
    install(monkeypatch, FakeLibrary(board))
    load = VirtualLoad(time, board, call_s=call_s, calls=1)
    window = run_window(meters_of(board), load, window_s=5.0, now=time)
    assert window.joules / window.calls == pytest.approx(300.0 * call_s, rel=2e-3)


def test_gaps_between_batches_count_and_are_told_as_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    time = VirtualTime()
    board = FakeBoard(time)
    install(monkeypatch, FakeLibrary(board))
    load = VirtualLoad(time, board, call_s=1e-3, calls=8, gap_s=2e-3)
    window = run_window(meters_of(board), load, window_s=5.0, now=time)
    assert window.busy == pytest.approx(0.8, abs=0.01)
    assert window.joules / window.calls == pytest.approx((8e-3 * 300 + 2e-3 * 60) / 8, rel=5e-3)


def test_polling_leaves_the_counter_alone_between_the_marks_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some boards tell stale values when they are asked every few milliseconds."""
    time = VirtualTime()
    board = FakeBoard(time)
    install(monkeypatch, FakeLibrary(board))
    meters = meters_of(board)
    assert meters.main is not None
    asked: list[float] = []
    read = meters.main.read
    monkeypatch.setattr(meters.main, "read", lambda: (asked.append(time()), read())[1])
    window = run_window(meters, VirtualLoad(time, board), window_s=3.0, now=time)
    inside = [t for t in asked if window.begin_s < t < window.begin_s + 3.0]
    looked_at = [t for t, _ in window.marks[1:-1]]
    assert len(looked_at) == 2 and min(looked_at) > window.begin_s + 1.0
    assert all(any(0 <= mark - t <= 0.11 for mark in looked_at) for t in inside)  # while a refresh is awaited, at most one


def test_slope_of_the_marks_is_a_second_estimate_that_one_reading_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    time = VirtualTime()
    board = FakeBoard(time, phase_s=0.04)
    install(monkeypatch, FakeLibrary(board))
    window = run_window(meters_of(board), VirtualLoad(time, board), window_s=5.0, now=time)
    assert len(window.marks) == 6 and window.marks[0][0] == window.begin_s and window.marks[-1][0] == window.end_s
    assert window.slope_watts == pytest.approx(300.0, rel=5e-3) == window.watts
    instant, joules = window.marks[-1]
    wrong = replace(window, joules=window.joules + 150.0, marks=(*window.marks[:-1], (instant, joules + 150.0)))
    assert wrong.watts == pytest.approx(330.0, rel=5e-3) and wrong.slope_watts == pytest.approx(300.0, rel=0.08)
    assert replace(window, marks=window.marks[:2]).slope_watts is None


def test_reset_inside_a_window_gives_null_and_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    time = VirtualTime()
    board = FakeBoard(time)
    install(monkeypatch, FakeLibrary(board))
    meters = meters_of(board)

    def reset_after_a_second() -> None:
        if time() > 1001.5:
            board.offset_mj = 0.0

    with pytest.raises(Unavailable, match="went backwards") as caught:
        run_window(meters, VirtualLoad(time, board), window_s=2.0, sample=reset_after_a_second, now=time)
    assert caught.value.flag == "counter_reset"
    # The next window begins after the reset and is whole again.
    assert run_window(meters, VirtualLoad(time, board), window_s=2.0, now=time).watts == pytest.approx(300.0, rel=5e-3)


def test_counter_that_stands_still_is_not_zero_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    time = VirtualTime()
    board = FakeBoard(time, gain=0.0)
    install(monkeypatch, FakeLibrary(board))
    with pytest.raises(Unavailable, match="did not move"):
        run_window(meters_of(board), VirtualLoad(time, board), window_s=2.0, now=time)
    meters = opened(board)
    assert meters.main is None and meters.reason is not None and "changed 0 times in 2 s" in meters.reason


@pytest.mark.parametrize("update_s", [0.02, 0.1, 0.106])
def test_refresh_period_is_measured(monkeypatch: pytest.MonkeyPatch, update_s: float) -> None:
    board = FakeBoard(VirtualTime(), update_s=update_s)
    install(monkeypatch, FakeLibrary(board))
    found = update_period(NvmlCounter(open_board(UUID)), board.time, board.time.spend)
    assert found.seconds == pytest.approx(update_s, abs=2.1e-3)


def test_idle_power_of_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    board = FakeBoard(VirtualTime(), watts=75.0)
    install(monkeypatch, FakeLibrary(board))
    halves = idle_watts(meters_of(board), seconds=10.0, now=board.time, sleep=board.time.spend)
    assert halves == pytest.approx([75.0, 75.0], rel=2e-3)


def constant(_t: float) -> float:
    return 300.0


def step(t: float) -> float:
    return 300.0 if t < 5.0 else 60.0


@pytest.mark.parametrize(("power", "joules"), [(constant, 3000.0), (step, 1800.0)])
def test_hold_integral_counts_equal_readings_and_steps(power: object, joules: float) -> None:
    """Dropping equal readings and joining the rest by lines would give 0 J and 800 J here."""
    assert callable(power)
    times = [0.01 * i for i in range(1000)]
    assert hold_integral(times, [power(t) for t in times], 0.0, 10.0) == pytest.approx(joules, abs=1.0)


def test_hold_integral_needs_a_reading_before_its_begin() -> None:
    assert hold_integral([1.0, 2.0], [10.0, 20.0], 0.5, 3.0) is None
    assert hold_integral([1.0, 2.0], [10.0, 20.0], 1.5, 3.0) == pytest.approx(25.0)
    assert hold_integral([], [], 0.0, 1.0) is None


def test_power_integral_measures_windows_without_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    time = VirtualTime()
    board = FakeBoard(time, codes={"nvmlDeviceGetTotalEnergyConsumption": 3})
    install(monkeypatch, FakeLibrary(board))
    meters = Meters(PowerIntegral(open_board(UUID), time))
    window = run_window(meters, VirtualLoad(time, board), window_s=10.0, settle_s=0.1, now=time)
    assert window.joules == pytest.approx(3000.0, abs=5.0)
    assert window.joules / window.calls == pytest.approx(0.3, rel=2e-3)
