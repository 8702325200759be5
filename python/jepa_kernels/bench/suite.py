"""What a run measures and how: the built-in suites, and strict TOML files that replace them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .cache import STATES
from .cases import Case, all_cases, load_cases, select
from .clocks import NAMES as CLOCKS
from .errors import BenchInputError, require
from .timing import TimingOptions


@dataclass(frozen=True)
class Suite:
    """Selection of cases by tag and glob, and the options of the measurement. Durations are in seconds."""

    name: str
    tags: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()  # globs; one that begins with `!` leaves out
    providers: tuple[str, ...] = ()
    baseline: str = ""  # the provider that ratios are quoted against, where a case has it; else the case's own peer
    priority: tuple[str, ...] = ()  # globs of the cases to measure first, in this order
    seed: int = 0
    case_budget_s: float = 60.0
    time_budget_s: float = 0.0  # of the whole run; 0 is no limit
    in_order: bool = False  # the time budget cuts no case short to reach the next: what is left at its end waits for --resume
    ahead_s: float = 0.0  # before all timing, every case is called once in processes side by side, so that compilers' caches fill
    energy: str = "auto"  # require: no run without it; off: no energy windows
    energy_cases: tuple[str, ...] = ()  # globs of the cases that get energy windows; none: all
    energy_windows: int = 5  # of each provider, interleaved; more while the interval is wide and time is left
    energy_window_s: float = 5.0  # or 50 refreshes of the counter, where that is longer
    energy_idle_s: float = 10.0  # before and after the windows of a case
    profile: bool = True  # step cases are profiled after the timing, each in its own process
    profile_peer: bool = True  # the peer too, beside our backend
    quick: bool = False
    isolate: bool = False  # each case in a process of its own: a crash or a hang costs one case
    restart: bool = False  # all cases in one process beside this one, and after a crash or a broken device in another
    case_limit_s: float = 900.0  # what `isolate` and `restart` let a case take beyond its budget: compiling a step takes minutes
    own: str = ""  # a Python file whose cases() are measured instead of the package's
    timing: TimingOptions = field(default_factory=TimingOptions)

    def __post_init__(self) -> None:
        for name, value, known in (("cache", self.timing.cache, STATES), ("clock", self.timing.clock, CLOCKS)):
            if value not in known:
                raise BenchInputError(f"suite {self.name!r}: timing.{name} {value!r} is not one of {', '.join(known)}")

    def chosen(self) -> list[Case]:
        """The cases that carry any of the tags and match any of the globs, those with priority first."""
        return sorted(self._selected(), key=self._place)

    def _place(self, case: Case) -> int:
        matching = (place for place, glob in enumerate(self.priority) if fnmatchcase(case.id, glob))
        return next(matching, len(self.priority))

    def _selected(self) -> list[Case]:
        if self.own:
            return select(load_cases(Path(self.own)), self.cases)
        tagged = [c for c in all_cases() if not self.tags or c.tags & set(self.tags)]
        if not tagged:
            raise BenchInputError(f"suite {self.name!r}: no case has any of the tags {', '.join(self.tags)}")
        return select(tagged, self.cases)


_SUITES = Path(__file__).resolve().parents[3] / "benchmarks" / "suites"
FULL = Suite(name="full", tags=("full",), cases=("!objectives/*-vitl-*",))
QUICK = Suite(
    name="quick",
    tags=("quick",),
    cases=("!train_step/*-fp32", "!patch_embed/*-fp32", "!masked_attention/*causal*-fp32", "!masked_attention/*ragged*-fp32"),
    providers=("!jk-reference", "!torch-part-*", "!torch-compile*"),
    priority=("train_step/*",),
    case_budget_s=9.0,
    time_budget_s=90.0,
    energy_windows=3,
    energy_window_s=0.5,
    energy_idle_s=1.0,
    profile_peer=False,
    quick=True,
    timing=TimingOptions(
        rounds=40, min_rounds=10, enough_s=1.5, warmup_max_s=0.25, warmup_agreement=0.05, max_relative_ci=0.1, max_drift=0.1
    ),
)


def load_suite(path: Path) -> Suite:
    """Read a suite file; a bare name is one of the source tree's `benchmarks/suites`.

    Raises `BenchInputError` for a missing file, bad TOML, or a key that has no meaning.
    """
    if not path.suffix and len(path.parts) == 1 and not path.exists():
        path = _SUITES / f"{path.name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchInputError(f"suite {path} cannot be read: {error.strerror}") from error
    toml = _toml()
    try:
        raw = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise BenchInputError(f"suite {path} is not TOML: {error}") from error
    if not isinstance(raw.get("timing", {}), dict):
        raise BenchInputError(f"suite {path}: timing must be a table")
    return from_record({"name": path.stem, **raw}, path)


def as_toml(suite: Suite) -> str:
    """The suite as a file that `load_suite` reads back to the same suite."""
    plain = [f"{key} = {_toml_value(value)}" for key, value in vars(suite).items() if key != "timing"]
    timing = [f"{key} = {_toml_value(value)}" for key, value in vars(suite.timing).items()]
    return "\n".join([*plain, "", "[timing]", *timing]) + "\n"


def _toml_value(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def from_record(values: Mapping[str, Any], where: Path) -> Suite:
    """The suite that a run's environment holds, with the same checks as a file."""
    timing = dict(values.get("timing", {}))
    plain = {key: value for key, value in values.items() if key != "timing"}
    suite = _fill(Suite(name=where.name), plain, where, skip="timing")
    return replace(suite, timing=_fill(TimingOptions(), timing, where, where="timing."))


def _toml() -> Any:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        return require("tomli")
    return tomllib


def _fill(base: Any, values: Mapping[str, Any], path: Path, *, where: str = "", skip: str = "") -> Any:
    known = {f.name: getattr(base, f.name) for f in fields(base) if f.name != skip}
    converted = {}
    for key, value in values.items():
        if key not in known:
            raise BenchInputError(f"suite {path}: unknown key {where}{key}; known: {', '.join(known)}")
        converted[key] = _convert(value, known[key], f"suite {path}: {where}{key}")
    return replace(base, **converted)


def _convert(value: Any, default: Any, name: str) -> Any:
    if isinstance(default, tuple):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise BenchInputError(f"{name} must be a list of strings, got {value!r}")
        return tuple(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        raise BenchInputError(f"{name} must be {type(default).__name__}, got {value!r}")
    if not isinstance(value, (str, bool)) and value < 0:
        raise BenchInputError(f"{name} must not be negative, got {value!r}")
    return value
