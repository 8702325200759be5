"""Energy of the providers of one case: idle, interleaved windows, idle again; as many as the time allows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .errors import Unavailable
from .loads import Load
from .meters import Meters
from .result import relative_interval
from .window import Window, idle_watts, run_window

if TYPE_CHECKING:
    from ..telemetry import Timeline

MIN_UPDATES = 50  # refreshes of the counter in a window of full length
FEWEST_UPDATES = 10  # in the shortest window that is worth anything
SHORTEST_S = 0.5
MAX_ROUNDS = 4  # times the wanted number of windows, while the interval is wide and time is left


@dataclass(frozen=True)
class EnergyOptions:
    """How much to measure. Durations are in seconds."""

    windows: int = 5
    window_s: float = 5.0
    idle_s: float = 10.0
    settle_s: float = 0.5
    max_relative_ci: float = 0.02


@dataclass
class Subject:
    """One provider whose energy is measured."""

    name: str
    load: Callable[[], Load]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    windows: dict[int, Window] = field(default_factory=dict)  # round -> window
    error: Unavailable | None = None


@dataclass(frozen=True)
class Idle:
    """Mean power of the idle device, W, and whether its two halves agreed; None with a reason where unknown."""

    watts: float | None
    settled: bool = True
    reason: str | None = None
    begin_s: float = 0.0
    end_s: float = 0.0


@dataclass(frozen=True)
class Measured:
    """What the windows of a case gave."""

    options: EnergyOptions  # as far as the time allowed
    before: Idle
    after: Idle


def fitting(options: EnergyOptions, update_s: float | None, subjects: int, budget_s: float) -> EnergyOptions | None:
    """The options, cut down until they fit the budget: fewer windows, then shorter ones; None where nothing does."""
    period = update_s or 0.0
    full = max(options.window_s, MIN_UPDATES * period)
    least = min(full, max(SHORTEST_S, FEWEST_UPDATES * period))
    idle_least = min(options.idle_s, max(1.0, FEWEST_UPDATES * period))
    fewest = min(options.windows, 2)
    for windows, window_s, idle_s in (
        (options.windows, full, options.idle_s),
        (options.windows, max(full / 2, least), max(options.idle_s / 2, idle_least)),
        (max(options.windows // 2, fewest), max(full / 2, least), max(options.idle_s / 4, idle_least)),
        (fewest, max(full / 4, least), idle_least),
        (fewest, least, idle_least),
    ):
        if needed(windows, window_s, idle_s, options.settle_s, period, subjects) <= budget_s:
            return EnergyOptions(windows, window_s, idle_s, options.settle_s, options.max_relative_ci)
    return None


def needed(windows: int, window_s: float, idle_s: float, settle_s: float, period: float, subjects: int) -> float:
    """Seconds that so many windows take; each end waits for at most one refresh."""
    return windows * subjects * (settle_s + window_s + 2 * period) + 2 * (idle_s + 4 * period)


def measure(
    subjects: Sequence[Subject],
    meters: Meters,
    options: EnergyOptions,
    timeline: Timeline,
    *,
    seed: int = 0,
    budget_s: float = float("inf"),
    stop: Callable[[], bool] = lambda: False,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Measured:
    """Fill the windows of the subjects. Each round runs every subject once, in random order.

    After the wanted number of rounds it goes on while an interval is wider than `max_relative_ci` and time is left. A
    subject whose meter fails keeps its `error`, and the others go on. Raises `Unavailable` when the budget is too small.
    """
    begin, order = now(), random.Random(seed)
    chosen = fitting(options, meters.update_s, len(subjects), budget_s)
    if chosen is None:
        raise Unavailable(f"the time budget left {max(budget_s, 0):.0f} s, too little for energy windows", "no_time")
    before = _idle(meters, chosen, timeline, now, sleep)
    each = needed(1, chosen.window_s, 0.0, chosen.settle_s, meters.update_s or 0.0, len(subjects))
    end = begin + budget_s - chosen.idle_s - each
    for index in range(MAX_ROUNDS * chosen.windows):
        running = [s for s in subjects if s.error is None]
        if stop() or not running or (index >= chosen.windows and (now() > end or _narrow(running, chosen))):
            break
        for subject in order.sample(running, len(running)):
            _window(subject, index, meters, chosen, timeline, now)
    after = Idle(None, reason="interrupted") if stop() else _idle(meters, chosen, timeline, now, sleep)
    return Measured(chosen, before, after)


def _narrow(subjects: Sequence[Subject], options: EnergyOptions) -> bool:
    return all(
        relative_interval([w.joules / w.calls for w in subject.windows.values()]) <= options.max_relative_ci
        for subject in subjects
    )


def _window(
    subject: Subject, index: int, meters: Meters, options: EnergyOptions, timeline: Timeline, now: Callable[[], float]
) -> None:
    try:
        with subject.context():
            subject.windows[index] = run_window(
                meters,
                subject.load(),
                window_s=options.window_s,
                settle_s=options.settle_s,
                sample=lambda: timeline.sample("energy", subject.name),
                now=now,
            )
    except Unavailable as error:
        subject.error = error
    except Exception as error:  # energy is an extra: whatever a call does now, the times stand
        subject.error = Unavailable(f"the call failed in an energy window: {type(error).__name__}: {error}")


def _idle(
    meters: Meters,
    options: EnergyOptions,
    timeline: Timeline,
    now: Callable[[], float],
    sleep: Callable[[float], object],
) -> Idle:
    begin = now()
    try:
        halves = idle_watts(
            meters, seconds=options.idle_s, sample=lambda: timeline.sample("idle", None), now=now, sleep=sleep
        )
    except Unavailable as error:
        return Idle(None, reason=error.reason, begin_s=begin, end_s=now())
    mean = fmean(halves)
    settled = mean > 0 and abs(halves[1] - halves[0]) <= 0.05 * mean
    return Idle(mean, settled, begin_s=begin, end_s=now())
