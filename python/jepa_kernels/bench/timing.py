"""Timing: adaptive warm-up, and rounds that run every provider once in random order."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .cache import Eviction
from .clocks import Call, Clock
from .statistics import Ratio, Summary

# A warm sample follows an untimed call, or the provider before it would have filled the caches and sent the threads to sleep.
# Whole training steps need it, too: one hands its memory back to the system, and the next provider's first step takes the page
# faults of getting it (measured: 0.35 s of 2 s). Only calls that are longer still hide all of this.
_PRIMED_BELOW_S = 10.0


@dataclass(frozen=True)
class TimingOptions:
    """How long and how often to measure. Every duration is in seconds."""

    rounds: int = 30
    min_rounds: int = 10
    enough_s: float = 0.0  # of one case: with `min_rounds` done and this spent, no more rounds; 0 is no such limit
    sample_s: float = 1e-3
    warmup_max_s: float = 3.0
    warmup_agreement: float = 0.01
    max_relative_ci: float = 0.02
    max_drift: float = 0.02
    cache: str = "warm"  # "cold" evicts the caches before every timed call
    clock: str = "auto"  # or a name of `clocks.NAMES`


@dataclass
class Timed:
    """One provider inside an interleaved measurement, and what was measured of it."""

    name: str
    call: Call
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    calls_per_sample: int = 1
    seconds_per_call: float = 0.0  # as warmed up
    warmup_s: float = 0.0
    samples: dict[int, float] = field(default_factory=dict)  # round -> seconds per call
    positions: dict[int, int] = field(default_factory=dict)  # round -> place in that round's order
    error: BaseException | None = None
    eviction: Eviction | None = None

    def sample(self, clock: Clock) -> float:
        """Seconds per call of one batch of calls, right after an untimed one; of one call alone where the caches are evicted
        before it."""
        with self.context():
            if self.eviction is not None:
                self.eviction.evict()
            elif self.seconds_per_call < _PRIMED_BELOW_S:
                clock.measure(self.call, 1)
            return clock.measure(self.call, self.calls_per_sample) / self.calls_per_sample


def warm_up(timed: Timed, clock: Clock, options: TimingOptions) -> None:
    """Choose the batch size, then run until two windows in a row agree or the time is spent."""
    spent, window = 0.0, 1
    with timed.context():
        seconds = clock.measure(timed.call, 1)  # the first call may build tables or allocate: not used
        spent += seconds
        previous = None
        while spent < options.warmup_max_s:
            seconds = max(clock.measure(timed.call, window), 1e-9)
            spent += seconds
            if seconds < options.sample_s:
                window = min(window * 10, int(window * 1.3 * options.sample_s / seconds) + 1)
                continue
            if previous is not None and abs(seconds / previous - 1) <= options.warmup_agreement:
                break
            previous = seconds
    timed.seconds_per_call = seconds / window
    timed.calls_per_sample = window if timed.eviction is None else 1
    timed.warmup_s = spent


def interleave(
    providers: Sequence[Timed],
    clock: Clock,
    options: TimingOptions,
    *,
    seed: int = 0,
    budget_s: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[str | None], None] = lambda _provider: None,
    now: Callable[[], float] = time.perf_counter,
) -> None:
    """Measure providers in rounds; each round runs every provider once, in seeded random order.

    Fills `samples` of each provider. A provider that raises keeps its `error` and leaves the rounds; the others go
    on. `watch(None)` is called before the first round and `watch(name)` after each sample, outside of all timing.
    Ends after `options.rounds`, when `budget_s` or `options.enough_s` seconds are spent (never by what was measured),
    or after the round in which `stop()` turns true: no round is cut, so every provider has the same ones.
    """
    order = random.Random(seed)
    begin = now()
    for timed in providers:
        if stop():
            return
        _guarded(timed, partial(warm_up, timed, clock, options))
    watch(None)
    for index in range(options.rounds):
        spent = now() - begin
        enough = 0 < options.enough_s < spent and index >= options.min_rounds
        if stop() or enough or (budget_s is not None and spent > budget_s):
            return
        running = [t for t in providers if t.error is None]
        for position, timed in enumerate(order.sample(running, len(running))):
            _guarded(timed, partial(_record, timed, clock, index, position))
            watch(timed.name)


def _record(timed: Timed, clock: Clock, index: int, position: int) -> None:
    timed.samples[index] = timed.sample(clock)
    timed.positions[index] = position


def _guarded(timed: Timed, action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:  # any provider may fail in any way; the others must still be measured
        timed.error = error


def flags(summary: Summary, ratio: Ratio | None, options: TimingOptions) -> list[str]:
    """Why a measurement is not conclusive; empty when it is.

    With a peer the interval of the paired ratio decides, and drift of the machine, which cancels in it, does
    not.
    """
    found = []
    if summary.rounds < options.min_rounds:
        found.append(f"{summary.rounds} rounds, at least {options.min_rounds} wanted")
    width = summary.relative_ci if ratio is None else ratio.relative_ci
    if width > options.max_relative_ci:
        found.append(f"95 % interval {width:.0%} wide, limit {options.max_relative_ci:.0%}")
    if ratio is None and abs(summary.drift) > options.max_drift:
        found.append(f"drift {summary.drift:+.0%}, limit {options.max_drift:.0%}")
    return found
