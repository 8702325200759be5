"""Two runs against each other: for each case and provider whether it became slower, faster, or neither.

Rounds pair providers within a run, not across runs. So a provider of ours is judged by its ratio to the PyTorch form
that both runs timed in the same rounds: what the machine did to all of them cancels. PyTorch's own rows, which nobody
changed, are the controls: the scatter of their ratios tells what differs between two runs beyond sampling, and widens
every interval. Where the controls of one case moved apart from those of the others, something disturbed that case, and
its intervals widen by as much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .errors import BenchInputError, require
from .resume import differences
from .statistics import CONFIDENCE, bootstrap_medians
from .store import Record

# What must be equal for two runs to be held against each other.
MACHINE = ("device", "hardware.cpu.name", "hardware.gpus", "system.threads", "energy.board.power_limit_w")
SOFTWARE = ("versions.torch", "versions.triton", "versions.python", "versions.cuda", "input.sha256", "suite.seed")
CEILINGS = ("copy_bytes_per_s", "fp32_flops_per_s", "bf16_flops_per_s")
CEILING_SHIFT = 0.03
MIN_CONTROLS = 4
ALPHA = (1 - CONFIDENCE) / 2  # each side
MAD_TO_DEVIATION = 1.4826
IMPROVED, SAME, REGRESSED, INCONCLUSIVE = "improved", "same", "regressed", "inconclusive"
BROKEN = ("failed", "oom", "timeout")  # statuses of a provider that could not do what it should
THROTTLED = "throttl"  # in a flag: the clock of the device was held down while this was measured


@dataclass(frozen=True)
class Change:
    """How one measure of one provider changed: `ratio` is head over base, above 1 is slower, or more energy."""

    case_id: str
    provider: str
    measure: str  # "time / <peer>", "time" or "energy"
    control: bool
    ratio: float
    ci_low: float
    ci_high: float
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Thresholds:
    """Smallest changes that count: of time, of energy (None: as time), and of the cases that a glob names."""

    time: float = 0.05
    energy: float | None = None
    by_case: tuple[tuple[str, float], ...] = ()

    def of(self, case_id: str, measure: str) -> float:
        """The share for one row; of the globs the last that matches counts, for energy too."""
        named = [share for glob, share in self.by_case if fnmatchcase(case_id, glob)]
        general = self.energy if measure == "energy" and self.energy is not None else self.time
        return named[-1] if named else general


@dataclass(frozen=True)
class Comparison:
    """All changes, and what a reader must know of the two runs."""

    changes: list[Change]
    warnings: list[str]
    broken: list[str]  # cells that base timed and head failed on
    missing: list[str]
    thresholds: Thresholds
    run_noise: float

    def verdicts(self, verdict: str) -> list[Change]:
        return [c for c in self.changes if not c.control and c.verdict == verdict]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


DEFAULT = Thresholds()


@dataclass(frozen=True)
class _Shift:
    """log(head / base) of one row before it is judged, with its standard error from the bootstrap."""

    base: Record
    head: Record
    measure: str
    control: bool
    log: float
    error: float
    rounds: int


def check_comparable(base: Mapping[str, Any], head: Mapping[str, Any], *, force: bool = False) -> list[str]:
    """Warnings about two environments. Raises `BenchInputError` when they cannot be compared, unless forced."""
    reasons = [f"{name}: {old} in the base, {new} in the head" for name, old, new in _differ(base, head)]
    if base["suite"]["quick"] or head["suite"]["quick"]:
        reasons.append("a quick run is no baseline: few rounds and short warm-up")
    if reasons and not force:
        raise BenchInputError(f"the runs cannot be compared ({'; '.join(reasons)}); --force compares them all the same")
    warnings = [f"forced: {reason}" for reason in reasons]
    for name in CEILINGS:
        old, new = base["ceilings"][name], head["ceilings"][name]
        if abs(new / old - 1) > CEILING_SHIFT:
            warnings.append(f"ceiling {name} moved by {new / old - 1:+.0%}: the machine was not in the same state")
    for which, environment in (("base", base), ("head", head)):
        if environment["commit"].get("dirty"):
            warnings.append(f"the {which} was run from a tree with changes")
    return warnings


def _differ(base: Mapping[str, Any], head: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return differences(dict(base), dict(head), (*MACHINE, *SOFTWARE))


def compare(
    base: Sequence[Record],
    head: Sequence[Record],
    *,
    thresholds: Thresholds = DEFAULT,
    absolute: bool = False,
    seed: int = 0,
    warnings: Sequence[str] = (),
) -> Comparison:
    """Judge every cell that both runs timed; Holm's correction over all rows that are judged.

    `regressed` when the ratio is above 1 + its threshold with corrected p < 0.05 (two-sided: at most one in twenty
    comparisons of equal runs shows any change), `improved` when it is below the inverse of that, `same` when
    the 95 % interval lies within both, `inconclusive` otherwise. `absolute` judges raw times, PyTorch's rows included.
    Raises `BenchInputError` when no cell was timed in both.
    """
    olds, news = _timed(base), _timed(head)
    both = [key for key in olds if key in news]
    if not both:
        raise BenchInputError("the runs have no timed case and provider in common")
    unequal = [key for key in both if _measured_as(olds[key]) != _measured_as(news[key])]
    shifts = [
        shift
        for key in both
        if key not in unequal
        for shift in _shifts(olds, news, key, absolute=absolute, seed=seed)
    ]
    noise = _run_noise(olds, news, [key for key in both if key not in unequal], seed)
    known = {(r["case_id"], r["provider"]): r for r in head}
    lost = [key for key in olds if key not in news]
    return Comparison(
        changes=_judge(shifts, thresholds, _noise_of(shifts, noise)),
        warnings=[*warnings, *(f"{_name(key)}: clock, cache state or shape differs; not compared" for key in unequal)],
        broken=[_name(k) for k in lost if k in known and known[k]["status"] in BROKEN],
        missing=[_name(k) for k in lost if k not in known or known[k]["status"] not in BROKEN],
        thresholds=thresholds,
        run_noise=noise,
    )


def _timed(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    return {(r["case_id"], r["provider"]): r for r in records if r["stats"] is not None}


def _name(key: tuple[str, str]) -> str:
    return f"{key[0]} {key[1]}"


def _measured_as(record: Record) -> tuple[Any, ...]:
    return record["clock"], record["cache"]["state"], record["shape"], record["work"]


def _shifts(
    olds: Mapping[tuple[str, str], Record],
    news: Mapping[tuple[str, str], Record],
    key: tuple[str, str],
    *,
    absolute: bool,
    seed: int,
) -> list[_Shift]:
    old, new = olds[key], news[key]
    peer = (key[0], old["peer"])
    control = key[1].startswith("torch-") and not absolute
    against = not control and not absolute and old["peer"].startswith("torch-") and peer in olds and peer in news
    name = f"time / {old['peer']}" if against else "time"
    logs = [_logs(old, olds[peer]), _logs(new, news[peer])] if against else [_logs(old), _logs(new)]
    found = [_shift(old, new, name, control, logs, seed)] if all(part.size >= 2 for part in logs) else []
    energies = [_energies(record) for record in (old, new)]
    if all(part.size >= 2 for part in energies):
        found.append(_shift(old, new, "energy", control, energies, seed))
    return found


def _logs(record: Record, peer: Record | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log seconds of each round, or log of provider over peer in the rounds that both have."""
    mine = dict(zip(record["samples"]["round"], record["samples"]["seconds"], strict=True))
    if peer is None:
        return np.log(list(mine.values()))
    other = dict(zip(peer["samples"]["round"], peer["samples"]["seconds"], strict=True))
    return np.log([mine[r] / other[r] for r in sorted(mine.keys() & other.keys())])


def _energies(record: Record) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log joules per call of each window; empty where the energy is missing."""
    windows = record["energy"].get("windows") or []
    joules = [(w["e1"] - w["e0"]) / w["n_calls"] for w in windows if w.get("n_calls")]
    return np.log([j for j in joules if j > 0])


def _shift(
    old: Record, new: Record, measure: str, control: bool, logs: Sequence[Any], seed: int
) -> _Shift:
    spread = [bootstrap_medians(part, seed + index) for index, part in enumerate(logs)]
    error = math.hypot(*(float(np.std(draws, ddof=1)) for draws in spread))
    log = float(np.median(logs[1]) - np.median(logs[0]))
    return _Shift(old, new, measure, control, log, error, min(part.size for part in logs))


def _run_noise(
    olds: Mapping[tuple[str, str], Record], news: Mapping[tuple[str, str], Record], keys: Sequence[Any], seed: int
) -> float:
    """Standard deviation between two runs of what did not change: PyTorch's forms against their PyTorch peer."""
    controls = []
    for key in keys:
        old, new = olds[key], news[key]
        peer = (key[0], old["peer"])
        if all(name.startswith("torch-") for name in (key[1], peer[1])) and peer != key and peer in olds and peer in news:
            logs = [_logs(old, olds[peer]), _logs(new, news[peer])]
            if all(part.size >= 2 for part in logs):
                controls.append(_shift(old, new, "", True, logs, seed))
    if len(controls) < MIN_CONTROLS:
        return 0.0
    total = MAD_TO_DEVIATION * float(np.median([abs(c.log) for c in controls]))
    sampling = float(np.median([c.error for c in controls]))
    return math.sqrt(max(total**2 - sampling**2, 0.0))


def _noise_of(shifts: Sequence[_Shift], run_noise: float) -> list[float]:
    """Each row's standard deviation between runs: of ratios or of raw times, and what disturbed its case alone."""
    controls = [s for s in shifts if s.control and s.measure == "time"]
    if not controls:
        return [run_noise] * len(shifts)
    middle = float(np.median([c.log for c in controls]))
    disturbed: dict[str, float] = {}
    for c in controls:
        beyond = math.sqrt(max((c.log - middle) ** 2 - c.error**2, 0.0))
        disturbed[c.base["case_id"]] = max(disturbed.get(c.base["case_id"], 0.0), beyond)
    raw = MAD_TO_DEVIATION * float(np.median([abs(c.log) for c in controls])) if len(controls) >= MIN_CONTROLS else 0.0
    return [
        math.hypot(raw if s.measure == "time" and not s.control else run_noise, disturbed.get(s.base["case_id"], 0.0))
        for s in shifts
    ]


def _judge(shifts: Sequence[_Shift], thresholds: Thresholds, noise: Sequence[float]) -> list[Change]:
    stats = require("scipy.stats")
    limits = [math.log1p(thresholds.of(s.base["case_id"], s.measure)) for s in shifts]
    errors = [max(math.hypot(s.error, extra), 1e-12) for s, extra in zip(shifts, noise, strict=True)]
    judged = [i for i, s in enumerate(shifts) if not s.control]
    slower = _holm({i: float(stats.t.sf((shifts[i].log - limits[i]) / errors[i], shifts[i].rounds - 1)) for i in judged})
    faster = _holm({i: float(stats.t.sf((-limits[i] - shifts[i].log) / errors[i], shifts[i].rounds - 1)) for i in judged})
    changes = []
    for i, shift in enumerate(shifts):
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, shift.rounds - 1)) * errors[i]
        low, high = shift.log - half, shift.log + half
        verdict, note = INCONCLUSIVE, _note(shift)
        if THROTTLED in note:
            note = f"{note}: not judged"
        elif slower.get(i, 1.0) < ALPHA:
            verdict = REGRESSED
        elif faster.get(i, 1.0) < ALPHA:
            verdict = IMPROVED
        elif -limits[i] <= low and high <= limits[i]:
            verdict = SAME
        case_id, provider = shift.base["case_id"], shift.base["provider"]
        numbers = (math.exp(shift.log), math.exp(low), math.exp(high))
        changes.append(Change(case_id, provider, shift.measure, shift.control, *numbers, verdict, note))
    return changes


def _note(shift: _Shift) -> str:
    flags = {flag for record in (shift.base, shift.head) for flag in record["flags"] if THROTTLED in flag.lower()}
    return "; ".join(sorted(flags))


def _holm(values: Mapping[int, float]) -> dict[int, float]:
    """Adjusted p-values. Source: Holm, Scandinavian Journal of Statistics 6 (1979)."""
    adjusted, highest = {}, 0.0
    for rank, (key, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        highest = max(highest, min(p * (len(values) - rank), 1.0))
        adjusted[key] = highest
    return adjusted
