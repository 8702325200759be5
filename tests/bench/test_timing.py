"""Interleaved timing in virtual time: small differences are seen under drift, equal providers are not told apart."""

from __future__ import annotations

import pytest

from jepa_kernels.bench.clocks import WallClock
from jepa_kernels.bench.statistics import Ratio, paired_ratio, summarise
from jepa_kernels.bench.timing import Timed, TimingOptions, flags, interleave, warm_up

from .toys import VirtualMachine

OPTIONS = TimingOptions(rounds=30, warmup_max_s=0.1)


def measured(machine: VirtualMachine, **durations: float) -> Ratio:
    """Speed-up of the first over the second."""
    first, second = machine.timed(**durations)
    interleave([first, second], machine.clock(), OPTIONS, seed=machine.seed, now=machine.seconds)
    ratio = paired_ratio(first.samples, second.samples)
    assert ratio is not None
    return ratio


@pytest.mark.parametrize("seed", range(5))
def test_five_percent_is_detected_while_the_machine_slows_down_by_half(seed: int) -> None:
    machine = VirtualMachine(noise=0.02, drift_per_s=5.0, seed=seed)
    ratio = measured(machine, fast=1e-3, slow=1.05e-3)
    assert ratio.ci_low > 1
    assert ratio.value == pytest.approx(1.05, rel=0.01)


def test_equal_providers_are_rarely_told_apart_under_drift() -> None:
    """200 comparisons of a provider with itself on a noisy machine that slows down: at most one in twenty is wrong.

    The 95 % intervals of these seeds leave 1 out 8 times in 200 (4 %); of five times as many seeds, 44 in 1,000.
    """
    missed = 0
    for seed in range(200):
        machine = VirtualMachine(noise=0.05, drift_per_s=5.0, seed=seed)
        ratio = measured(machine, one=1e-3, other=1e-3)
        missed += not ratio.ci_low <= 1 <= ratio.ci_high
    assert missed <= 10


def test_equal_real_calls_are_rarely_told_apart() -> None:
    """On the real clock, ten times: the same work twice.

    Where one interval in twenty is wrong, chance makes five of ten wrong once in 16,000 runs.
    """
    missed = 0
    for seed in range(10):
        twins = [Timed(name, lambda: sum(range(2000))) for name in ("one", "other")]
        options = TimingOptions(rounds=20, sample_s=2e-4, warmup_max_s=0.02)
        interleave(twins, WallClock(), options, seed=seed)
        ratio = paired_ratio(twins[0].samples, twins[1].samples)
        assert ratio is not None
        missed += not ratio.ci_low <= 1 <= ratio.ci_high
    assert missed < 5


@pytest.mark.parametrize(("seconds", "primed"), [(2e-3, True), (2.0, True), (20.0, False)])
def test_a_warm_sample_follows_an_untimed_call_unless_calls_are_long(seconds: float, primed: bool) -> None:
    machine = VirtualMachine()
    fast, slow = machine.work(seconds), machine.work(1.5 * seconds)
    last = ""

    def provider(name: str) -> Timed:
        def call() -> None:  # half as long again where the other provider has just used the caches
            nonlocal last
            (fast if last == name else slow)()
            last = name

        return Timed(name, call)

    both = [provider("one"), provider("other")]
    interleave(both, machine.clock(), TimingOptions(rounds=6, warmup_max_s=0.01), now=machine.seconds)
    slowest = max(max(timed.samples.values()) for timed in both)
    assert slowest == pytest.approx(seconds if primed else 1.5 * seconds)


def test_short_calls_are_batched_to_the_sample_length() -> None:
    machine = VirtualMachine()
    (timed,) = machine.timed(short=2e-6)
    warm_up(timed, machine.clock(), OPTIONS)
    assert timed.calls_per_sample * 2e-6 >= OPTIONS.sample_s
    assert timed.sample(machine.clock()) == pytest.approx(2e-6)


def test_warm_up_runs_until_windows_agree() -> None:
    machine = VirtualMachine()
    durations = [8e-3, 4e-3, 3e-3, 2e-3, 2e-3, 2e-3]
    calls = iter([machine.work(d) for d in durations])
    (timed,) = machine.timed(settling=1.0)
    timed.call = lambda: next(calls)()
    warm_up(timed, machine.clock(), OPTIONS)
    assert timed.warmup_s == pytest.approx(sum(durations[:5]))


def test_every_round_has_every_provider_once_in_changing_order() -> None:
    machine = VirtualMachine()
    providers = machine.timed(a=1e-3, b=2e-3, c=3e-3)
    interleave(providers, machine.clock(), OPTIONS, seed=1, now=machine.seconds)
    orders = {tuple(p.positions[r] for p in providers) for r in range(OPTIONS.rounds)}
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len(orders) > 3


def test_order_depends_on_the_seed_alone() -> None:
    def positions(seed: int) -> list[dict[int, int]]:
        machine = VirtualMachine()
        providers = machine.timed(a=1e-3, b=2e-3, c=3e-3)
        interleave(providers, machine.clock(), OPTIONS, seed=seed, now=machine.seconds)
        return [p.positions for p in providers]

    assert positions(1) == positions(1) != positions(2)


def test_a_provider_that_raises_leaves_the_others_running() -> None:
    machine = VirtualMachine()
    good, bad = machine.timed(good=1e-3, bad=1e-3)
    calls = 0

    def breaks() -> None:
        nonlocal calls
        calls += 1
        machine.now_ns += 1_000_000
        if calls > 20:
            raise RuntimeError("broken")

    bad.call = breaks
    interleave([good, bad], machine.clock(), OPTIONS, now=machine.seconds)
    assert isinstance(bad.error, RuntimeError)
    assert len(good.samples) == OPTIONS.rounds > len(bad.samples)


def test_budget_ends_the_rounds() -> None:
    machine = VirtualMachine()
    providers = machine.timed(slow=0.5, slower=1.0)
    interleave(providers, machine.clock(), OPTIONS, budget_s=10.0, now=machine.seconds)
    first, second = (len(p.samples) for p in providers)
    assert first == second and 10.0 < machine.seconds() < 12.0


def test_enough_time_ends_the_rounds_once_there_are_enough_of_them() -> None:
    for seconds, rounds in ((0.5, OPTIONS.min_rounds), (0.02, 13), (1e-3, OPTIONS.rounds)):
        machine = VirtualMachine()
        (timed,) = machine.timed(one=seconds)
        options = TimingOptions(rounds=30, warmup_max_s=0.0, enough_s=0.5)
        interleave([timed], machine.clock(), options, now=machine.seconds)
        assert abs(len(timed.samples) - rounds) <= 2


def test_stop_ends_after_the_round() -> None:
    machine = VirtualMachine()
    providers = machine.timed(a=1e-3, b=1e-3)
    interleave(providers, machine.clock(), OPTIONS, stop=lambda: len(providers[0].samples) == 3, now=machine.seconds)
    assert [len(p.samples) for p in providers] == [3, 3]


def test_wall_clock_counts_nanoseconds() -> None:
    ticks = iter([100, 1_000_000_100])
    assert WallClock(lambda: next(ticks)).measure(lambda: None, 3) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("samples", "ratio", "expected"),
    [
        ([1.0] * 20, None, []),
        ([1.0] * 5, None, ["rounds"]),
        ([1.0, 3.0] * 10, None, ["interval"]),
        ([1.0] * 10 + [1.1] * 10, None, ["interval", "drift"]),
        ([1.0, 3.0] * 10, Ratio(2.0, 1.99, 2.01, 20), []),  # the machine was noisy, the paired ratio was not
        ([1.0] * 20, Ratio(2.0, 1.8, 2.2, 20), ["interval"]),
    ],
)
def test_flags_tell_why_a_measurement_is_not_conclusive(
    samples: list[float], ratio: Ratio | None, expected: list[str]
) -> None:
    found = flags(summarise(samples), ratio, TimingOptions())
    assert len(found) == len(expected)
    assert all(word in flag for word, flag in zip(expected, found, strict=True))
