"""One energy window: a load that runs while the counter goes from one refresh to a later one.

A counter that is refreshed every 100 ms tells the joules of one second to 10 % when it is read at any two instants.
Read at two refreshes it is exact: both ends are awaited with the load running, and calls are counted by time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from .errors import Unavailable
from .loads import Batch, Load, Poll
from .meters import POLL_S, Meter, Meters

Now = Callable[[], float]
MARK_S, MARK_UPDATES = 1.0, 10  # between marks inside a window: seldom, for some boards answer stale when they are asked often
STILL_LIMIT_S = 5.0  # a counter that has not moved for so long, with the device at work, does not count


@dataclass(frozen=True)
class Mark:
    """An instant at which the meters were read; `resolution_s` is how well that instant is known."""

    instant: float
    joules: float
    parts: dict[str, float]
    resolution_s: float


@dataclass(frozen=True)
class Window:
    """What was counted between two marks. `calls` is a time divided by a time and need not be whole.

    `marks` are (instant, joules) at refreshes of the counter: both ends, and seldom between. Their slope is a second
    estimate of the power, which no single reading decides.
    """

    begin_s: float
    end_s: float
    joules: float
    calls: float
    seconds_per_call: float
    busy: float
    resolution_s: float
    parts: dict[str, float] = field(default_factory=dict)
    marks: tuple[tuple[float, float], ...] = ()

    @property
    def slope_watts(self) -> float | None:
        """Slope of joules over time by least squares; None with fewer than three marks."""
        if len(self.marks) < 3:
            return None
        instants, joules = zip(*self.marks, strict=True)
        middle, mean = fmean(instants), fmean(joules)
        spread = sum((t - middle) ** 2 for t in instants)
        return sum((t - middle) * (j - mean) for t, j in self.marks) / spread

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s

    @property
    def watts(self) -> float:
        return self.joules / self.seconds


class Watcher:
    """Keeps the meters read often enough, and samples the timeline, while a window runs."""

    def __init__(self, meters: Meters, now: Now, sample: Poll) -> None:
        self._sample, self._now = sample, now
        main = () if meters.main is None else (meters.main,)
        self._meters = [m for m in (*main, *meters.others) if m.max_gap_s < float("inf")]
        self._due = {id(m): 0.0 for m in self._meters}

    def __call__(self) -> None:
        for meter in self._meters:
            if self._now() >= self._due[id(meter)]:
                meter.read()
                self._due[id(meter)] = self._now() + meter.max_gap_s / 4
        self._sample()


class _Edge:
    """A poll that finds the instant at which the counter moves."""

    def __init__(self, meters: Meters, main: Meter, now: Now, watch: Poll) -> None:
        self._main, self._others, self._now, self._watch = main, meters.others, now, watch
        self._update_s = meters.update_s
        self._value, self._seen = main.read(), now()
        self._moves = meters.update_s is None  # without refreshes every instant is as good
        self.mark: Mark | None = None

    def __call__(self) -> None:
        if self.mark is not None:
            return self._watch()
        instant = self._now()
        if instant - self._seen < POLL_S and not self._moves:
            return None
        value = self._main.read()
        if value != self._value or self._moves:
            gap = 0.0 if self._update_s is None else min(instant - self._seen, self._update_s)
            parts = {meter.scope: meter.read() for meter in self._others}
            self.mark = Mark(instant, value, parts, gap)
        self._seen = instant
        return None


@dataclass
class _Progress:
    """Batches that have ended, to tell the seconds of a call and how busy the device was."""

    now: Now
    ends: list[float] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)

    def run(self, load: Load, poll: Poll) -> None:
        batch = load.run(poll)
        if batch.calls:
            self.ends.append(self.now())
            self.calls.append(batch.calls)
            self.busy_s.append(batch.busy_s)

    def rates(self, begin: float, end: float) -> tuple[float, float]:
        """Seconds per call and busy share, from the batches between two instants, or from all where those are few."""
        inside = [i for i, t in enumerate(self.ends) if begin <= t <= end]
        if len(inside) < 2:
            inside = list(range(len(self.ends)))
        first, rest = inside[0], inside[1:]
        if not rest:
            return self.busy_s[first] / self.calls[first], 1.0
        elapsed = self.ends[rest[-1]] - self.ends[first]
        return elapsed / sum(self.calls[i] for i in rest), min(1.0, sum(self.busy_s[i] for i in rest) / elapsed)


def run_window(
    meters: Meters,
    load: Load,
    *,
    window_s: float,
    settle_s: float = 0.0,
    sample: Poll = lambda: None,
    now: Now = time.perf_counter,
) -> Window:
    """Run the load for `settle_s`, then from a refresh of the counter to one at least `window_s` later.

    Raises `Unavailable` when the meter fails, was reset, or does not move.
    """
    main = _main(meters)
    for meter in (main, *meters.others):
        meter.restart()
    watch, progress = Watcher(meters, now, sample), _Progress(now)
    try:
        start = now()
        while now() - start < settle_s or not progress.ends:
            progress.run(load, watch)
        begin = _edge(meters, main, load, progress, now, watch)
        marks, step = [begin], max(MARK_S, MARK_UPDATES * (meters.update_s or 0.0))
        while now() - begin.instant < window_s:
            if meters.update_s is not None and marks[-1].instant + step <= now() <= begin.instant + window_s - step / 2:
                marks.append(_edge(meters, main, load, progress, now, watch))
            else:
                progress.run(load, watch)
        end = _edge(meters, main, load, progress, now, watch)
    finally:
        load.drain()
    seconds_per_call, busy = progress.rates(begin.instant, end.instant)
    return Window(
        begin_s=begin.instant,
        end_s=end.instant,
        joules=end.joules - begin.joules,
        calls=(end.instant - begin.instant) / seconds_per_call,
        seconds_per_call=seconds_per_call,
        busy=busy,
        resolution_s=begin.resolution_s + end.resolution_s,
        parts={scope: end.parts[scope] - joules for scope, joules in begin.parts.items()},
        marks=tuple((mark.instant, mark.joules) for mark in (*marks, end)),
    )


def _main(meters: Meters) -> Meter:
    if meters.main is None:
        raise Unavailable(meters.reason or "there is no meter")
    return meters.main


def _edge(meters: Meters, main: Meter, load: Load, progress: _Progress, now: Now, watch: Poll) -> Mark:
    edge, start, batches = _Edge(meters, main, now, watch), now(), len(progress.ends)
    while edge.mark is None:
        progress.run(load, edge)
        if edge.mark is None and now() - start > STILL_LIMIT_S and len(progress.ends) > batches:
            raise Unavailable(f"the {main.source} counter did not move in {now() - start:.1f} s", "still")
    return edge.mark


class _Idle:
    """The load of a device that does nothing: it only lets time pass."""

    def __init__(self, now: Now, sleep: Callable[[float], object]) -> None:
        self._now, self._sleep = now, sleep

    def run(self, poll: Poll) -> Batch:
        self._sleep(POLL_S)
        poll()
        return Batch(1, 0.0)

    def drain(self) -> None:
        """Nothing is under way."""


def idle_watts(
    meters: Meters,
    *,
    seconds: float,
    sample: Poll = lambda: None,
    now: Now = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Sequence[float]:
    """Mean power of the idle device in the first and in the second half of `seconds`, each between refreshes.

    Two halves that differ tell that the device had not settled.
    """
    load = _Idle(now, sleep)
    halves = [run_window(meters, load, window_s=seconds / 2, sample=sample, now=now) for _ in range(2)]
    return [half.watts for half in halves]
