"""Energy and machine state inside a benchmark run: what is opened at its start and measured after the rounds of a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from . import energy, globs, telemetry
from .clocks import DeviceGraphClock
from .errors import BenchInputError
from .statistics import paired_ratio
from .store import Record

if TYPE_CHECKING:
    from .cases import Case, Work
    from .runner import Cell, Session
    from .suite import Suite

MODES = ("auto", "require", "off")
NO_ENERGY = 5  # exit code of --energy require where there is none


class EnergyRequiredError(BenchInputError):
    """Energy was required and this machine gives none."""

    exit_code = NO_ENERGY


def prepare(device: torch.device, suite: Suite) -> energy.Meters:
    """Open the meters of a device and measure how often its counter is refreshed.

    Raises `EnergyRequiredError`, before anything is measured, where energy is required and there is none.
    """
    if suite.energy not in MODES:
        raise BenchInputError(f"suite {suite.name!r}: energy {suite.energy!r} is not one of {', '.join(MODES)}")
    if suite.energy == "off":
        return energy.Meters(None, "switched off")
    meters = energy.open_meters(device)
    energy.find_period(meters)
    if suite.energy == "require" and meters.main is None:
        raise EnergyRequiredError(f"energy is required and cannot be measured: {meters.reason}; see `jepa-kernels doctor`")
    return meters


def describe(meters: energy.Meters) -> dict[str, Any]:
    """What the environment of a run says of its meters."""
    return {
        "available": meters.main is not None,
        "reason": meters.reason,
        "source": meters.main.source if meters.main else None,
        "scope": meters.main.scope if meters.main else None,
        "update_s": meters.update_s,
        "flags": list(meters.flags),
        "others": [meter.scope for meter in meters.others],
        "missing": dict(meters.missing),
        "board": meters.board.describe() if meters.board else None,
    }


def lacking(records: Sequence[Record], suite: Suite) -> bool:
    """Whether energy is required and a provider that was timed has none, of the cases that get windows."""
    chosen = [record for record in records if globs.matches(record["case_id"], suite.energy_cases)]
    timed = [record for record in chosen if record["stats"] is not None]
    return suite.energy == "require" and any(record["energy"]["joules_per_call"] is None for record in timed)


def wanted(session: Session, case: Case) -> bool:
    """Whether this case gets energy windows."""
    chosen = globs.matches(case.id, session.suite.energy_cases)
    return chosen and session.suite.energy != "off" and session.meters.main is not None


def timeline(session: Session) -> telemetry.Timeline:
    """An empty timeline of a case, with the probe of the run's device."""
    return telemetry.Timeline(*probe_for(session.device, session.meters))


def probe_for(device: torch.device, meters: energy.Meters) -> tuple[telemetry.Probe | None, str | None]:
    """The probe of a device, or why there is none."""
    if device.type != "cuda":
        return telemetry.CpuProbe(energy.packages_or_none()), None
    if meters.board is None:
        return None, meters.reason
    return telemetry.GpuProbe(meters.board), None


def measure_cells(
    case: Case, cells: Sequence[Cell], work: Work | None, session: Session, line: telemetry.Timeline, budget_s: float
) -> None:
    """Give each timed cell its energy, its timeline, and what the machine's state says against its times."""
    timed = [cell for cell in cells if cell.timed is not None and cell.timed.samples and cell.status == "ok"]
    subjects = {id(cell): _subject(cell, session) for cell in timed}
    windows: dict[int, Sequence[dict[str, Any]]] = {}
    if not timed:
        return
    try:
        _check(session, case)
        measured = energy.measure(
            list(subjects.values()),
            session.meters,
            _options(session),
            line,
            seed=session.suite.seed,
            budget_s=budget_s,
            stop=session.stop,
        )
    except energy.Unavailable as error:
        for cell in timed:
            cell.energy = energy.absent(error.reason, session.meters.flags)
    else:
        for cell in timed:
            subject = subjects[id(cell)]
            ratios = _ratios(subject, cells, subjects, session.suite.seed)
            found = energy.reading(subject, session.meters, measured, line, work, unit(case))
            cell.energy = energy.with_ratios(found, ratios)
            windows[id(cell)] = energy.spans(subject, measured, line.begin)
    for cell in timed:
        name = cell.provider.name
        cell.timeline = line.as_dict(name, windows.get(id(cell), ()))
        cell.machine_flags, cell.machine_notes = telemetry.flags(line, name, case.peer)


def _check(session: Session, case: Case) -> None:
    if session.stop():
        raise energy.Unavailable("interrupted")
    if not globs.matches(case.id, session.suite.energy_cases):
        raise energy.Unavailable("the suite measures no energy of this case")
    if session.meters.main is None:
        raise energy.Unavailable(session.meters.reason or "there is no meter")


def unit(case: Case) -> str | None:
    """What the energy of a case is told per, beside call, sample and token: a step (and its clips), a clip or an image."""
    if case.operator in ("train_step", "objectives"):
        return "step"
    if case.operator not in ("patch_embed", "encoder"):
        return None
    return "clip" if int(case.shape["frames"]) > 1 else "image"


def _options(session: Session) -> energy.EnergyOptions:
    suite, board = session.suite, session.meters.board
    averaged = board is not None and board.power_kind() != "instant"
    settle_s = 1.2 if averaged else min(0.5, suite.energy_window_s / 4)  # beyond the second that such a board averages over
    return energy.EnergyOptions(suite.energy_windows, suite.energy_window_s, suite.energy_idle_s, settle_s)


def _subject(cell: Cell, session: Session) -> energy.Subject:
    assert cell.timed is not None
    seconds, clock, call = median(cell.timed.samples.values()), session.clock(), cell.timed.call

    def load() -> energy.Load:
        # What is timed without launches is fed without them too: gaps would add the idle device's joules.
        fed = clock.replay(call) if isinstance(clock, DeviceGraphClock) else call
        return energy.load_for(session.device, fed, seconds)

    return energy.Subject(cell.provider.name, load, cell.timed.context)


def _ratios(
    subject: energy.Subject, cells: Sequence[Cell], subjects: dict[int, energy.Subject], seed: int
) -> dict[str, dict[str, float]]:
    """How many times less energy a call takes than each PyTorch form in the same rounds of windows."""

    def joules(one: energy.Subject) -> dict[int, float]:
        return {index: window.joules / window.calls for index, window in one.windows.items()}

    found = {}
    for cell in cells:
        other = subjects.get(id(cell))
        if other is None or other is subject or not other.name.startswith("torch-"):
            continue
        ratio = paired_ratio(joules(subject), joules(other), seed)
        if ratio is not None:
            found[other.name] = asdict(ratio)
    return found
