"""Many runs of one machine in order of time: the trend of each case and provider, and where it stepped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from . import summary
from .compare import MACHINE
from .errors import BenchInputError
from .resume import differences
from .store import ENVIRONMENT, Record, read_environment, read_results

BARS = "▁▂▃▄▅▆▇█"
STEP = 0.05  # smallest change between two neighbouring levels that is told
MIN_STEP_RUNS = 4


@dataclass(frozen=True)
class Point:
    """One run's value for one series: seconds, and the ratio to the peer of the same run."""

    run: str
    datetime: str
    commit: str
    seconds: float
    speed_up: float | None


@dataclass(frozen=True)
class Series:
    """One case and provider over all runs, oldest first. Steps are found in the speed-up where every run has one."""

    case_id: str
    provider: str
    peer: str
    points: list[Point]
    change: float  # last over first, minus one; positive is slower
    step_at: str | None  # the run at which the level changed most
    step: float | None

    @property
    def sparkline(self) -> str:
        """Relative cost over the runs, low to high."""
        costs = _costs(self.points)
        low, span = min(costs), max(costs) - min(costs)
        return "".join(BARS[round((c - low) / span * (len(BARS) - 1))] if span else BARS[3] for c in costs)


@dataclass(frozen=True)
class History:
    """All series, and the folders that were passed over with the reason."""

    series: list[Series]
    passed_over: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read(folder: Path) -> History:
    """The runs below a folder that were made on the same machine as the newest, quick and full ones apart.

    Raises `BenchInputError` when no run can be read.
    """
    runs, passed = [], []
    for path in sorted(folder.glob(f"**/{ENVIRONMENT}")):
        try:
            runs.append((path.parent, read_environment(path.parent), read_results(path.parent)))
        except BenchInputError as error:
            passed.append(str(error))
    if not runs:
        raise BenchInputError(f"no benchmark run can be read below {folder}{': ' + passed[0] if passed else ''}")
    runs.sort(key=lambda run: run[1]["datetime"])
    newest, kept = runs[-1][1], []
    for run in runs:
        changed = differences(run[1], newest, (*MACHINE, "suite.quick", "suite.timing.cache", "suite.timing.clock"))
        if changed:
            passed.append(f"{run[0]}: {changed[0][0]} differs from the newest run")
        else:
            kept.append(run)
    return History(_series(kept), passed)


def _series(runs: Sequence[tuple[Path, Mapping[str, Any], Sequence[Record]]]) -> list[Series]:
    points: dict[tuple[str, str, str], list[Point]] = {}
    for folder, environment, records in runs:
        for record in records:
            if record["stats"] is not None:
                key = (record["case_id"], record["provider"], record["peer"])
                points.setdefault(key, []).append(_point(folder, environment, record))
    return [_one(*key, found) for key, found in points.items()]


def _point(folder: Path, environment: Mapping[str, Any], record: Record) -> Point:
    ratio = record["ratios"].get(record["peer"])
    commit = environment["commit"]["id"] or environment["versions"]["jepa-kernels"] or ""
    return Point(
        folder.name, environment["datetime"], commit[:10], record["stats"]["median"], ratio["value"] if ratio else None
    )


def _one(case_id: str, provider: str, peer: str, points: list[Point]) -> Series:
    costs = _costs(points)
    index, size = largest_step([math.log(c) for c in costs])
    told = index is not None and abs(math.expm1(size)) >= STEP
    return Series(
        case_id,
        provider,
        peer,
        points,
        change=costs[-1] / costs[0] - 1,
        step_at=points[index].run if told and index is not None else None,
        step=math.expm1(size) if told else None,
    )


def _costs(points: Sequence[Point]) -> list[float]:
    """Time over the peer's time where every run has it, which cancels the machine's state; else seconds."""
    if all(p.speed_up for p in points):
        return [1 / p.speed_up for p in points if p.speed_up]
    return [p.seconds for p in points]


def largest_step(values: Sequence[float]) -> tuple[int | None, float]:
    """Where to cut a series in two so that its halves' medians leave the least absolute residual, and the step there.

    None for fewer than four values, and when the cut explains less than half of the residual: that is noise or a slope.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.size < MIN_STEP_RUNS:
        return None, 0.0

    def residual(part: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        return float(np.abs(part - np.median(part)).sum())

    cuts = range(1, found.size)
    index = min(cuts, key=lambda cut: residual(found[:cut]) + residual(found[cut:]))
    if residual(found[:index]) + residual(found[index:]) > residual(found) / 2:
        return None, 0.0
    return index, float(np.median(found[index:]) - np.median(found[:index]))


def as_markdown(history: History) -> str:
    """A table with one row a series."""
    lines = [f"passed over: {text}" for text in history.passed_over]
    lines += ["", "| case | provider | runs | trend of cost | first | last | change | step |"]
    lines += ["|---|---|---:|---|---:|---:|---:|---|"]
    lines += [_row(series) for series in history.series]
    return "\n".join(lines).strip() + "\n"


def _row(s: Series) -> str:
    step = f"{s.step:+.0%} at {s.step_at}" if s.step is not None else "none"
    first, last = (summary.seconds(p.seconds) for p in (s.points[0], s.points[-1]))
    return f"| {s.case_id} | {s.provider} | {len(s.points)} | {s.sparkline} | {first} | {last} | {s.change:+.1%} | {step} |"


def select(history: History, patterns: Iterable[str]) -> History:
    """Only the series whose case matches one of the globs; raises `BenchInputError` when none does."""
    globs = list(patterns)
    if not globs:
        return history
    kept = [s for s in history.series if any(fnmatchcase(s.case_id, g) for g in globs)]
    if not kept:
        raise BenchInputError(f"no case of these runs matches {', '.join(map(repr, globs))}")
    return History(kept, history.passed_over)
