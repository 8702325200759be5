"""Does the energy of this machine add up? Four checks of its meter with a known load; `jepa-kernels doctor --energy`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..statistics import paired_ratio
from .loads import Load
from .measure import FEWEST_UPDATES, EnergyOptions, Subject, measure
from .meters import Meters
from .result import reading
from .window import Window, run_window

if TYPE_CHECKING:
    from ..telemetry import Timeline

MIN_R_SQUARED = 0.999
MAX_IDLE_DIFFERENCE = 0.05
WINDOW_S = 1.0
FACTORS = (1, 2, 4, 8)
AA_WINDOWS = 8


@dataclass(frozen=True)
class Validation:
    """One check: what was found, in words, and whether it is as it should be; None where it could not be made."""

    name: str
    found: str
    passed: bool | None


def validate(
    meters: Meters,
    load: Callable[[], Load],
    timeline: Timeline,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> list[Validation]:
    """Linearity, A against A, counter against power, and idle power; about a minute.

    Raises `Unavailable` where the meter fails.
    """
    window_s = max(WINDOW_S, FEWEST_UPDATES * (meters.update_s or 0.0))
    lengths = [
        run_window(meters, load(), window_s=factor * window_s, settle_s=window_s / 2, now=now) for factor in FACTORS
    ]
    both = [Subject("A", load), Subject("A again", load)]
    options = EnergyOptions(AA_WINDOWS, window_s, 2 * window_s, window_s / 4, max_relative_ci=1.0)
    measured = measure(both, meters, options, timeline, now=now, sleep=sleep)
    cross = reading(both[0], meters, measured, timeline, None).cross_check
    found = [linearity(lengths, meters.update_s or 0.0), _same(both)]
    if cross is not None and cross["difference"] is not None:
        text = f"counter {cross['difference']:+.1%} against the integral of the power readings, limit 5%"
        found.append(Validation("cross-check", text, bool(cross["passed"])))
    else:
        found.append(Validation("cross-check", "this meter has no second reading", None))
    before, after = measured.before.watts, measured.after.watts
    if before and after:
        change = after / before - 1
        found.append(Validation("idle", f"{before:.1f} W before, {after:.1f} W after", abs(change) <= MAX_IDLE_DIFFERENCE))
    return found


def linearity(windows: list[Window], update_s: float) -> Validation:
    """Joules of 1, 2, 4 and 8 times the calls lie on a line through zero, but for one refresh."""
    calls, joules = np.array([w.calls for w in windows]), np.array([w.joules for w in windows])
    slope, intercept = np.polyfit(calls, joules, 1)
    residual = joules - (slope * calls + intercept)
    r_squared = 1 - float(residual @ residual) / float(((joules - joules.mean()) ** 2).sum())
    # What the meter cannot tell: the joules of one refresh, or of 1 % of the shortest window.
    allowed = max(windows[0].watts * update_s, 0.01 * joules[0])
    passed = r_squared >= MIN_R_SQUARED and abs(float(intercept)) <= allowed
    text = f"R squared {r_squared:.5f}, limit {MIN_R_SQUARED}; {abs(intercept):.3g} J at no call, limit {allowed:.3g} J"
    return Validation("linearity", text, passed)


def _same(subjects: list[Subject]) -> Validation:
    """The same load twice: the interval of the ratio contains 1."""
    first, second = ({i: w.joules / w.calls for i, w in s.windows.items()} for s in subjects)
    ratio = paired_ratio(first, second)
    if ratio is None:
        return Validation("A against A", "too few windows", None)
    text = f"ratio {ratio.value:.4f}, interval {ratio.ci_low:.4f} to {ratio.ci_high:.4f}"
    return Validation("A against A", text, ratio.ci_low <= 1.0 <= ratio.ci_high)
