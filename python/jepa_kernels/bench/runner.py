"""Runs cases: every provider is checked, the passing ones are timed together, and each cell becomes one record."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..backends import BackendError
from . import energy_run, globs, telemetry
from .cache import CacheState, eviction_for
from .cases import WHOLE, Case, Provider, Setting, Work
from .ceilings import Ceilings
from .clocks import Clock, clock_for
from .correctness import UNCHECKED, Check, check, same_bits
from .energy import EnergyReading, Meters, absent, modelled
from .errors import BenchInputError
from .memory import Memory, bounded_memory, is_exhaustion, peak_memory
from .statistics import Summary, paired_ratio, summarise
from .store import Record
from .suite import Suite
from .timing import Timed, flags, interleave


@dataclass
class Session:
    """What all cases of a run share."""

    suite: Suite
    setting: Setting
    ceilings: Ceilings
    meters: Meters = field(default_factory=lambda: Meters(None, "no meter was opened"))
    deadline: float | None = None  # on the clock of time.perf_counter
    stop: Callable[[], bool] = lambda: False
    exhausted: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)  # see `_too_large`
    checking: Callable[[str | None], object] = lambda _provider: None  # told before each provider's first call, None after all
    failed: Callable[[BaseException], object] = lambda _error: None  # told of a failed call: it may have broken the device

    @property
    def device(self) -> torch.device:
        return self.setting.device

    def late(self) -> bool:
        """Whether the time budget of the whole run is spent."""
        return self.deadline is not None and time.perf_counter() >= self.deadline

    def clock(self) -> Clock:
        return clock_for(self.device, self.suite.timing.clock)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class Cell:
    """One provider of one case on its way through checking and timing."""

    provider: Provider
    status: str = "ok"
    error: str | None = None
    check: Check | None = None
    first_call_s: float | None = None
    timed: Timed | None = None
    memory: Memory = Memory(None, "not measured: the provider was not timed, or the run is a quick one")
    energy: EnergyReading = absent("not timed")
    timeline: dict[str, Any] | None = None
    machine_flags: list[str] = field(default_factory=list)
    machine_notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Prepared:
    """A provider that has run once: whether it was right, the call to time, and how long the first one took."""

    check: Check
    call: Callable[[], Any]
    first_call_s: float


def select_providers(case: Case, device: torch.device, patterns: Sequence[str]) -> list[Provider]:
    """The case's providers that the globs choose (see `globs`), or all without a glob."""
    return [p for p in case.providers(device) if globs.matches(p.name, patterns)]


def check_provider_names(cases: Sequence[Case], device: torch.device, patterns: Sequence[str]) -> None:
    """Raise `BenchInputError` for a provider glob that matches none of these cases' providers."""
    known = sorted({p.name for case in cases for p in case.providers(device)})
    stray = globs.unmatched(patterns, known)
    if stray is not None:
        raise BenchInputError(f"no provider matches {stray!r}; known: {', '.join(known)}")


def chosen_cases(suite: Suite, device: torch.device) -> list[Case]:
    """The cases of a suite on a device, with its baseline as their peer where they have it.

    Raises `BenchInputError` for a glob or a baseline that names nothing.
    """
    cases = suite.chosen()
    check_provider_names(cases, device, suite.providers)
    if not suite.baseline:
        return cases
    names = {case.id: {p.name for p in select_providers(case, device, suite.providers)} for case in cases}
    if not any(suite.baseline in found for found in names.values()):
        known = ", ".join(sorted(set().union(*names.values())))
        raise BenchInputError(f"no case has the baseline {suite.baseline!r}; known: {known}")
    return [replace(case, peer=suite.baseline) if suite.baseline in names[case.id] else case for case in cases]


@bounded_memory()
def run_case(case: Case, session: Session, remaining: int) -> list[Record]:
    """Check and time every provider of a case; `remaining` cases share what is left of the time budget."""
    try:
        return _run_case(case, session, remaining)
    finally:
        release(session.device)


def _run_case(case: Case, session: Session, remaining: int) -> list[Record]:
    cells = [Cell(provider) for provider in select_providers(case, session.device, session.suite.providers)]
    work: Work | None = None
    if session.late():
        _mark(cells, "skipped", "the time budget was spent before this case")
    else:
        try:
            inputs = case.make_inputs(session.setting)
            work = case.work(inputs)
            _too_large(case, cells, work, session)
            _check_all(case, cells, inputs, session)
        except Exception as error:  # a broken case must not take the rest of the run with it
            _mark(cells, *_failure(error, "inputs or reference: "))
        share = max(_budget(session, remaining), 0.0)
        begin, timeline = time.perf_counter(), energy_run.timeline(session)
        timing_s = share / 2 if energy_run.wanted(session, case) else share
        _time_all(cells, session, timing_s, timeline, whole=case.operator in WHOLE)
        energy_run.measure_cells(case, cells, work, session, timeline, share - (time.perf_counter() - begin))
    _note_exhausted(case, cells, work, session)
    records = [_record(case, cell, cells, work, session) for cell in cells]
    return records


def release(device: torch.device) -> None:
    """Free what a case has left: models die in cycles, which Python collects late, and compiled ones are kept by the compiler."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def unmeasured(case: Case, reasons: Mapping[str, tuple[str, str]], session: Session) -> list[Record]:
    """Records of providers that gave nothing, from their status and why."""
    cells = [Cell(p, *reasons[p.name]) for p in case.providers(session.device) if p.name in reasons]
    return [_record(case, cell, cells, None, session) for cell in cells]


def _too_large(case: Case, cells: Sequence[Cell], work: Work, session: Session) -> None:
    """Leave out what cannot fit: a provider that ran out of memory on a case of its operator that moves no more bytes."""
    for cell in cells:
        limit, smaller = session.exhausted.get((case.operator, cell.provider.name), (float("inf"), ""))
        if work.bytes >= limit:
            cell.status, cell.error = "oom", f"not tried: memory ran out on {smaller}, which is no larger"


def _note_exhausted(case: Case, cells: Sequence[Cell], work: Work | None, session: Session) -> None:
    for cell in cells:
        key = (case.operator, cell.provider.name)
        if cell.status == "oom" and work is not None and work.bytes < session.exhausted.get(key, (float("inf"), ""))[0]:
            session.exhausted[key] = (work.bytes, case.id)


def _budget(session: Session, remaining: int) -> float:
    """Seconds that the rounds of this case may take: the suite's limit, or twice an even share of what is left.

    Most cases end before their share is spent, so that an even share would cut the long ones and leave time over.
    """
    limit = session.suite.case_budget_s
    if session.deadline is None:
        return limit
    left = session.deadline - time.perf_counter()
    if session.suite.in_order:
        return min(limit, left)
    return min(limit, left * min(2 / max(remaining, 1), 1))


def _mark(cells: Sequence[Cell], status: str, reason: str) -> None:
    for cell in cells:
        cell.status, cell.error = status, reason


def _failure(error: BaseException, prefix: str = "") -> tuple[str, str]:
    if isinstance(error, BackendError):
        return "unsupported", str(error)  # what is wanted is not here
    if is_exhaustion(error):
        return "oom", f"{prefix}{error}"
    return "failed", f"{prefix}{type(error).__name__}: {error}"


def _check_all(case: Case, cells: Sequence[Cell], inputs: Any, session: Session) -> None:
    reference, low_precision = case.reference(inputs), case.low_precision(inputs)
    for cell in cells:
        if cell.status != "ok":
            continue
        if session.stop():
            cell.status, cell.error = "skipped", "the run was interrupted before this provider"
            continue
        if session.late():
            cell.status, cell.error = "skipped", "the time budget was spent before this provider"
            continue
        reason = cell.provider.supports(inputs)
        if reason is not None:
            cell.status, cell.error = "unsupported", reason
            continue
        try:
            session.checking(cell.provider.name)
            _check_one(case, cell, inputs, reference, low_precision, session)
        except Exception as error:  # any provider may fail in any way; the others must still be measured
            cell.status, cell.error = _failure(error)
            session.failed(error)
    session.checking(None)


def _check_one(
    case: Case,
    cell: Cell,
    inputs: Any,
    reference: list[Tensor],
    low_precision: list[Tensor],
    session: Session,
) -> None:
    prepared = prepare(case, cell.provider, inputs, reference, low_precision, session.synchronise)
    cell.check, cell.first_call_s = prepared.check, prepared.first_call_s
    if prepared.check.passed:
        cell.timed = Timed(cell.provider.name, prepared.call, cell.provider.context)
        cell.timed.eviction = eviction_for(
            session.suite.timing.cache, session.device, session.ceilings.last_level_cache_bytes
        )
    else:
        cell.status, cell.error = "failed", f"wrong result: {prepared.check.message}"


def prepare(
    case: Case,
    provider: Provider,
    inputs: Any,
    reference: list[Tensor],
    low_precision: list[Tensor],
    synchronise: Callable[[], Any],
) -> Prepared:
    """Set a provider up, run it once and check what it gives."""
    with provider.context():
        state = provider.setup(inputs)
        synchronise()
        begin = time.perf_counter()
        result = provider.run(state)
        synchronise()
        first_call_s = time.perf_counter() - begin
        outputs = provider.outputs(state, result)
        outcome = UNCHECKED if provider.yardstick else check(outputs, reference, low_precision, case.tolerance)
        if case.repeat and outcome.passed:
            kept = [x.clone() for x in outputs]  # a graph writes its outputs again
            outcome = replace(outcome, repeatable=same_bits(kept, provider.outputs(state, provider.run(state))))
    return Prepared(outcome, partial(provider.run, state), first_call_s)


def _time_all(
    cells: Sequence[Cell], session: Session, budget: float, timeline: telemetry.Timeline, *, whole: bool
) -> None:
    """Interleaved rounds, then the peak memory of each provider; in a quick run, of whole steps and models alone."""
    timed = [cell.timed for cell in cells if cell.timed is not None]
    interleave(
        timed,
        session.clock(),
        session.suite.timing,
        seed=session.suite.seed,
        budget_s=budget,
        stop=session.stop,
        watch=timeline.round,
    )
    for cell in cells:
        if cell.timed is not None and cell.timed.error is not None:
            cell.status, cell.error = _failure(cell.timed.error, "while timed: ")
            session.checking(cell.provider.name)
            session.failed(cell.timed.error)
            session.checking(None)
        elif cell.timed is not None and session.suite.in_order and session.late() and _too_few(cell.timed, session):
            cell.status, cell.error = "skipped", "the time budget was spent within this case"
        elif cell.timed is not None and cell.timed.samples and not session.stop() and (whole or not session.suite.quick):
            with cell.provider.context():
                cell.memory = peak_memory(cell.timed.call, session.device)


def _too_few(timed: Timed, session: Session) -> bool:
    return len(timed.samples) < session.suite.timing.min_rounds


def _record(case: Case, cell: Cell, cells: Sequence[Cell], work: Work | None, session: Session) -> Record:
    timed = cell.timed if cell.status == "ok" and cell.timed and cell.timed.samples else None
    record: Record = {
        "case_id": case.id,
        "operator": case.operator,
        "dtype": case.dtype,
        "shape": dict(case.shape),
        "provider": cell.provider.name,
        "about": cell.provider.about,
        "yardstick": cell.provider.yardstick,
        "peer": case.peer,
        "status": cell.status,
        "flags": [],
        "error": cell.error,
        "clock": session.clock().name,
        "cache": _cache(cell, session).as_dict(),
        "first_call_s": cell.first_call_s,
        "correctness": cell.check.as_dict() if cell.check else None,
        "work": asdict(work) if work else None,
        "samples": None,
        "stats": None,
        "ratios": {},
        "rates": None,
        "memory": cell.memory.as_dict(),
        "energy": cell.energy.as_dict(),
        "energy_model": modelled(work.flops, work.bytes, case.dtype, session.device.type).as_dict() if work else None,
        "timeline": cell.timeline,
    }
    if timed is None:
        if cell.status == "ok":
            record |= {"status": "skipped", "error": "interrupted or out of time before the first round"}
        return record
    seconds = list(timed.samples.values())
    summary = summarise(seconds, session.suite.seed)
    ratios = _ratios(timed, cells, case.peer, session.suite.seed)
    found = flags(summary, ratios.get(case.peer), session.suite.timing) + cell.machine_flags
    rates, above = _rates(summary, work, case.dtype, session.ceilings)
    status = "interrupted" if session.stop() else "inconclusive" if found else "ok"
    record |= {
        "status": status,
        "flags": found + above + cell.machine_notes,
        "samples": {
            "seconds": seconds,
            "round": list(timed.samples),
            "position": list(timed.positions.values()),
            "calls_per_sample": timed.calls_per_sample,
            "warmup_s": timed.warmup_s,
        },
        "stats": asdict(summary),
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
        "rates": rates,
    }
    return record


def _cache(cell: Cell, session: Session) -> CacheState:
    if cell.timed is not None and cell.timed.eviction is not None:
        return cell.timed.eviction.state()
    return CacheState("warm", 0, session.ceilings.last_level_cache_bytes)


def _ratios(timed: Timed, cells: Sequence[Cell], peer: str, seed: int) -> dict[str, Any]:
    """Speed-up over the peer, every PyTorch form and every yardstick that were timed in the same rounds."""
    found = {}
    for other in cells:
        if other.timed is None or other.timed is timed or other.status != "ok":
            continue
        name, yardstick = other.provider.name, other.provider.yardstick
        if name.startswith("torch-") or name == peer or yardstick:
            ratio = paired_ratio(timed.samples, other.timed.samples, seed)
            if ratio is not None:
                found[other.provider.name] = ratio
    return found


def _rates(
    summary: Summary, work: Work | None, dtype: str, ceilings: Ceilings
) -> tuple[dict[str, float] | None, list[str]]:
    if work is None:
        return None, []
    flops, moved = work.flops / summary.median, work.bytes / summary.median
    compute, copy = flops / ceilings.matrix(dtype), moved / ceilings.copy_bytes_per_s
    above = []
    if compute > 1:
        above.append(f"above the measured {dtype} matrix rate")
    if copy > 1:
        above.append("above the measured copy bandwidth")
    rates = {
        "flops_per_s": flops,
        "bytes_per_s": moved,
        "compute_fraction": compute,
        "copy_fraction": copy,
        "samples_per_s": work.samples / summary.median,
    }
    return rates, above
