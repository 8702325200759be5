"""From windows to joules: per call, sample, token, clip and step; total and marginal; with interval and flags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ..errors import require
from .meters import Meters, hold_integral
from .window import Window

if TYPE_CHECKING:
    from ..cases import Work
    from ..telemetry import Timeline
    from .measure import Measured, Subject

CROSS_CHECK_LIMIT = 0.05
SLOPE_LIMIT = 0.02
IDLE_CHANGE_LIMIT = 0.05
CONFIDENCE = 0.95


@dataclass(frozen=True)
class EnergyReading:
    """Energy of one provider of one case. What could not be measured is None, with a reason, and never 0.

    `joules_per_call` is the total; `marginal_joules_per_call` has the idle device's share taken off. `per` divides the
    total by the work of a call. `parts` are the columns of other meters in the same windows, and
    `all_parts_joules_per_call` is their sum with the total, None as long as one is missing.
    """

    joules_per_call: float | None
    reason: str | None
    source: str | None = None
    scope: str | None = None
    window_s: float | None = None
    calls: float | None = None
    slope_joules_per_call: float | None = None  # a second estimate: slope of the counter over time, times the time of a call
    status: str | None = None  # ok or inconclusive
    flags: tuple[str, ...] = ()
    ci95: tuple[float, float] | None = None
    marginal_joules_per_call: float | None = None
    marginal_reason: str | None = None
    per: dict[str, float] = field(default_factory=dict)
    mean_w: float | None = None
    edp_js: float | None = None  # energy-delay product of a call, joule-seconds
    flops_per_joule: float | None = None
    update_s: float | None = None
    resolution: float | None = None  # share of a window by which its ends are uncertain
    windows: tuple[dict[str, float], ...] = ()
    idle_before_w: float | None = None
    idle_after_w: float | None = None
    cross_check: dict[str, Any] | None = None
    parts: dict[str, float | None] = field(default_factory=dict)
    part_reasons: dict[str, str] = field(default_factory=dict)
    all_parts_joules_per_call: float | None = None
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def absent(reason: str | None, flags: Sequence[str] = ()) -> EnergyReading:
    """No energy, and why."""
    return EnergyReading(None, reason or "not measured", flags=tuple(flags))


def relative_interval(values: Sequence[float]) -> float:
    """Half-width of the 95 % t interval of the mean over the mean; infinite for fewer than two values."""
    if len(values) < 2 or fmean(values) <= 0:
        return math.inf
    quantile = float(require("scipy.stats").t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * stdev(values) / math.sqrt(len(values)) / fmean(values)


def reading(
    subject: Subject, meters: Meters, measured: Measured, timeline: Timeline, work: Work | None, unit: str | None = None
) -> EnergyReading:
    """The result of a subject; `unit` is what a sample of the case is called, `clip` or `step`."""
    windows = list(subject.windows.values())
    if subject.error is not None:
        return absent(subject.error.reason, (*meters.flags, *_flag(subject.error.flag)))
    if not windows or meters.main is None:
        return absent("interrupted before the first window", meters.flags)
    joules, seconds = sum(w.joules for w in windows), sum(w.seconds for w in windows)
    calls = sum(w.calls for w in windows)
    if joules <= 0:
        return absent(f"the {meters.main.source} counter did not move in {seconds:.1f} s", meters.flags)
    per_call, seconds_per_call = joules / calls, seconds / calls
    half = relative_interval([w.joules / w.calls for w in windows])
    marginal, marginal_reason = _marginal(per_call, seconds_per_call, measured)
    cross = _cross_check(subject.name, windows, meters, timeline)
    slope = _slope(windows, calls)
    flags = [*meters.flags, *_flags(windows, measured, meters, cross)]
    if slope is not None and abs(slope / per_call - 1) > SLOPE_LIMIT:
        flags.append("estimates_differ")
    wide = half > measured.options.max_relative_ci
    if wide:
        flags.append("wide_interval")
    parts, reasons = _parts(windows, calls, meters)
    return EnergyReading(
        joules_per_call=per_call,
        reason=meters.reason,
        source=meters.main.source,
        scope=meters.main.scope,
        window_s=seconds,
        calls=calls,
        slope_joules_per_call=slope,
        status="inconclusive" if wide or {"cross_check_failed", "estimates_differ"} & set(flags) else "ok",
        flags=tuple(flags),
        ci95=(per_call * (1 - half), per_call * (1 + half)) if math.isfinite(half) else None,
        marginal_joules_per_call=marginal,
        marginal_reason=marginal_reason,
        per=_per(per_call, work, unit),
        mean_w=joules / seconds,
        edp_js=per_call * seconds_per_call,
        flops_per_joule=work.flops / per_call if work else None,
        update_s=meters.update_s,
        resolution=max(w.resolution_s / w.seconds for w in windows),
        windows=tuple(_as_record(w, timeline.begin) for w in windows),
        idle_before_w=measured.before.watts,
        idle_after_w=measured.after.watts,
        cross_check=cross,
        parts=parts,
        part_reasons=reasons,
        all_parts_joules_per_call=_sum(per_call, parts),
    )


def with_ratios(found: EnergyReading, ratios: dict[str, dict[str, float]]) -> EnergyReading:
    """The reading with its ratios to other providers; None stays without."""
    return found if found.joules_per_call is None else replace(found, ratios=ratios)


def spans(subject: Subject, measured: Measured, zero: float) -> list[dict[str, Any]]:
    """When the idle phases and the windows of a subject were, in seconds on the timeline."""
    idle = [{"phase": "idle", "begin_s": i.begin_s - zero, "end_s": i.end_s - zero} for i in (measured.before, measured.after)]
    windows = [
        {"phase": "energy", "begin_s": w.begin_s - zero, "end_s": w.end_s - zero} for w in subject.windows.values()
    ]
    return [idle[0], *windows, idle[1]]


def _flag(flag: str | None) -> tuple[str, ...]:
    return () if flag is None else (flag,)


def _slope(windows: Sequence[Window], calls: float) -> float | None:
    """Joules of a call by the slopes of all windows; None where one has too few marks."""
    watts = [window.slope_watts for window in windows]
    known = [w * window.seconds for w, window in zip(watts, windows, strict=True) if w is not None]
    return sum(known) / calls if len(known) == len(windows) else None


def _sum(total: float, parts: dict[str, float | None]) -> float | None:
    found = [value for value in parts.values() if value is not None]
    return total + sum(found) if len(found) == len(parts) else None


def _as_record(window: Window, zero: float) -> dict[str, float]:
    """The ends in seconds on the timeline, the joules counted since the first end."""
    return {
        "t0": window.begin_s - zero,
        "t1": window.end_s - zero,
        "e0": 0.0,
        "e1": window.joules,
        "n_calls": window.calls,
        "busy": window.busy,
    }


def _per(per_call: float, work: Work | None, unit: str | None) -> dict[str, float]:
    if work is None:
        return {"call": per_call}
    found = {"call": per_call, "sample": per_call / work.samples, "token": per_call / work.tokens}
    if unit == "step":
        return found | {"step": per_call, "clip": per_call / work.samples}
    return found | ({unit: per_call / work.samples} if unit else {})


def _marginal(per_call: float, seconds_per_call: float, measured: Measured) -> tuple[float | None, str | None]:
    """Joules beyond those of the idle device in the same time."""
    for idle, when in ((measured.before, "before"), (measured.after, "after")):
        if idle.watts is None:
            return None, f"idle power {when} the windows is unknown: {idle.reason}"
    assert measured.before.watts is not None and measured.after.watts is not None
    return per_call - (measured.before.watts + measured.after.watts) / 2 * seconds_per_call, None


def _cross_check(
    provider: str, windows: Sequence[Window], meters: Meters, timeline: Timeline
) -> dict[str, Any] | None:
    """The counter against the integral of the power readings of the same windows; None where there is one source only."""
    if meters.main is None or meters.main.source != "nvml-counter":
        return None
    times, watts = timeline.column("power_w", provider, "energy")
    counted = integrated = 0.0
    for window in windows:
        begin = next((t for t in times if window.begin_s <= t), window.end_s)  # the first reading inside
        found = hold_integral(times, watts, begin, window.end_s)
        if found is None or begin >= window.end_s - 0.5 * window.seconds:
            continue
        integrated += found
        counted += window.watts * (window.end_s - begin)
    if integrated <= 0:
        return {"counter_j": None, "power_j": None, "difference": None, "passed": None, "reason": "no power readings"}
    difference = counted / integrated - 1
    passed = abs(difference) <= CROSS_CHECK_LIMIT
    return {"counter_j": counted, "power_j": integrated, "difference": difference, "passed": passed, "reason": None}


def _flags(
    windows: Sequence[Window], measured: Measured, meters: Meters, cross: dict[str, Any] | None
) -> list[str]:
    found = []
    before, after = measured.before, measured.after
    if cross is not None and cross["passed"] is False:
        found.append("cross_check_failed")
    if not (before.settled and after.settled):
        found.append("idle_unsettled")
    if before.watts and after.watts and abs(after.watts / before.watts - 1) > IDLE_CHANGE_LIMIT:
        found.append("idle_changed")
    if meters.update_s and any(w.seconds < 50 * meters.update_s for w in windows):
        found.append("short_windows")
    return found


def _parts(
    windows: Sequence[Window], calls: float, meters: Meters
) -> tuple[dict[str, float | None], dict[str, str]]:
    parts: dict[str, float | None] = dict.fromkeys(meters.missing)
    for meter in meters.others:
        parts[meter.scope] = sum(w.parts[meter.scope] for w in windows) / calls
    return parts, dict(meters.missing)
