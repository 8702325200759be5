"""One benchmark run from the first ceiling to the report, surviving interruption at any point."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import ahead, energy_run, environment, isolate, profile, resume, runner
from .cases import WHOLE, Case, Setting
from .ceilings import Ceilings, measure_ceilings
from .clocks import clock_for
from .console import Progress, print_table
from .devices import choose_device
from .errors import require
from .interrupt import StopFlag
from .report import write_report
from .store import DOCUMENT, ENVIRONMENT, PROFILES, STDOUT, Record, RunStore, emit_json, read_environment, to_json
from .suite import Suite, from_record
from .video import load_clip

OK, CASE_FAILED, INTERRUPTED = 0, 4, 130


@dataclass(frozen=True)
class RunOptions:
    """What the command line adds to a suite."""

    suite: Suite
    output: Path
    input: Path | None = None
    device: str = "auto"
    argv: tuple[str, ...] = ()
    resume: Path | None = None
    json: Path | None = None  # where the document goes too; `-` is stdout, to which nothing else is written then


def run(options: RunOptions) -> int:
    """Run a suite, or go on with an interrupted run; write its folder and print its table; returns the exit code.

    Raises `BenchInputError`, before anything is measured, for input that cannot be used.
    """
    with redirect_stdout(sys.stderr) if options.json == STDOUT else nullcontext():
        code, folder = _run(options)
    if options.json is not None and folder is not None:
        emit_json(options.json, (folder / DOCUMENT).read_text(encoding="utf-8"))
    return code


def _run(options: RunOptions) -> tuple[int, Path | None]:
    """The exit code, and the folder where it holds results."""
    for package in ("rich", "matplotlib", "jinja2", "scipy"):  # ask now, not after minutes of measuring
        require(package)
    begin = time.perf_counter()
    if options.resume is not None:
        options = _as_begun(options, options.resume)
    device, suite = choose_device(options.device), options.suite
    clock_for(device, suite.timing.clock)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and streams of the clock are those of the current device
    cases = runner.chosen_cases(suite, device)
    meters = energy_run.prepare(device, suite)
    clip = load_clip(options.input)
    describe = partial(
        environment.describe,
        device=device,
        suite=suite,
        argv=options.argv,
        clip=clip,
        energy=energy_run.describe(meters),
    )
    done: list[Record] = []
    if options.resume is None:
        store = RunStore.create(options.output)
        print(f"run {store.run_id}: {len(cases)} cases on {device}, results in {store.folder}", flush=True)
        described = describe(ceilings=measure_ceilings(device, quick=suite.quick))
        described["input"]["path"] = str(options.input.resolve()) if options.input else None
    else:
        store, done, described = _reopen(options.resume, cases, device, suite, describe)
    store.write(ENVIRONMENT, to_json(described))
    stop = StopFlag()
    session = runner.Session(
        suite=suite,
        setting=Setting(suite.seed, device, lambda: clip),
        ceilings=Ceilings(**described["ceilings"]),
        meters=meters,
        deadline=begin + suite.time_budget_s if suite.time_budget_s > 0 else None,
        stop=stop,
    )
    left = [case for case in cases if case.id not in {r["case_id"] for r in done}]
    if suite.ahead_s > 0:
        made = ahead.run(left, suite, device, options.input, _ahead_limit(session))
        print("called ahead: {processes} processes, {ended} of them done after {seconds:.0f} s".format(**made), flush=True)
        described.setdefault("ahead", []).append(made)
        store.write(ENVIRONMENT, to_json(described))
    try:
        measured = _measure(left, session, store, stop, options.input)
        if not stop():
            with suppress(KeyboardInterrupt):  # what was measured is still reported
                _profile_steps(left, measured, session, store.folder, options)
    finally:
        store.close()
    return _finish(resume.in_suite_order([*done, *measured], cases), suite, described, store, stop)


def _ahead_limit(session: runner.Session) -> float:
    """At most a third of what is left of the time budget."""
    left = float("inf") if session.deadline is None else session.deadline - time.perf_counter()
    return max(min(session.suite.ahead_s, left / 3), 0.0)


def _finish(
    records: list[Record], suite: Suite, described: dict[str, Any], store: RunStore, stop: StopFlag
) -> tuple[int, Path | None]:
    """Mark the run as finished, write its report, print its table; the exit code, and the folder where it holds results."""
    if not records:
        print(f"interrupted before the first case; {store.folder} holds no results", flush=True)
        return INTERRUPTED, None
    if not stop():
        store.write(ENVIRONMENT, to_json(described | {"finished": environment.now()}))
    print_table(records)
    print(f"report: {write_report(store.folder)}", flush=True)
    if stop():
        print(f"go on with: jepa-kernels bench run --resume {store.folder}", flush=True)
        return INTERRUPTED, store.folder
    if any(r["status"] in ("failed", "timeout") for r in records):
        return CASE_FAILED, store.folder
    return energy_run.NO_ENERGY if energy_run.lacking(records, suite) else OK, store.folder


def _as_begun(options: RunOptions, folder: Path) -> RunOptions:
    """The options that the run began with; of the new ones only the time budget counts."""
    before = read_environment(folder)
    suite = replace(from_record(before["suite"], folder), time_budget_s=options.suite.time_budget_s)
    path = before["input"].get("path")
    return replace(options, suite=suite, device=before["device"], input=Path(path) if path else None)


def _reopen(
    folder: Path, cases: Sequence[Case], device: torch.device, suite: Suite, describe: Callable[..., dict[str, Any]]
) -> tuple[RunStore, list[Record], dict[str, Any]]:
    """The store of an interrupted run, its finished records, and its environment with the resumption noted."""
    described = read_environment(folder)
    now = describe(ceilings=Ceilings(**described["ceilings"]))
    resume.check_same(described, now)
    expected = {c.id: {p.name for p in runner.select_providers(c, device, suite.providers)} for c in cases}
    kept, dropped = resume.split(folder, cases, expected, finished=described.pop("finished", None) is not None)
    described.setdefault("resumed", []).append({"datetime": now["datetime"], "kept": len(kept), "dropped": len(dropped)})
    print(f"resuming {folder.name}: {len(kept)} cells stand, {len(dropped)} are measured again", flush=True)
    return RunStore.reopen(folder, kept, dropped), kept, described


def _profile_steps(
    cases: Sequence[Case], records: Sequence[Record], session: runner.Session, folder: Path, options: RunOptions
) -> None:
    """Profile whole training steps, after all timing and each in its own process; a failure is told and passed over."""
    if not session.suite.profile:
        return
    timed = {(r["case_id"], r["provider"]) for r in records if r["stats"] is not None}
    for case in cases:
        if case.operator not in WHOLE:
            continue
        for name in profile.default_providers(case, case.providers(session.device)):
            unwanted = name == case.peer and not session.suite.profile_peer
            if (case.id, name) not in timed or unwanted or session.late():
                continue
            request = profile.Request(
                case.id, name, str(session.device), session.suite.own, str(options.input or ""), session.suite.seed
            )
            try:
                profile.in_own_process(request, folder / PROFILES / profile.folder_name(case.id, name))
                print(f"profiled {case.id} {name}", flush=True)
            except RuntimeError as error:
                print(f"not profiled: {case.id} {name}: {error}", flush=True)


def _measure(
    cases: Sequence[Case], session: runner.Session, store: RunStore, stop: StopFlag, video: Path | None
) -> list[Record]:
    """Run the cases until the end, an interrupt, or an abort; every record is stored before it is returned."""
    suite, done = session.suite, list[Record]()
    shared = isolate.Worker() if suite.restart and not suite.isolate else nullcontext()
    try:
        with stop.on_interrupt(), Progress(len(cases)) as progress, shared as worker:
            apart = suite.isolate or suite.restart
            run_case = partial(isolate.run_case, video=video, worker=worker) if apart else runner.run_case
            for index, case in enumerate(cases):
                if stop():
                    break
                progress.start(case.id)
                records = run_case(case, session, len(cases) - index)
                for record in records:
                    store.append(record)
                    done.append(record)
                progress.finish(records)
    except KeyboardInterrupt:
        stop.set()
    return done
