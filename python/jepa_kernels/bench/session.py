"""One benchmark run from the first ceiling to the report, surviving interruption at any point."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from . import document, energy_run, environment, runner
from .cases import Case, Setting
from .ceilings import measure_ceilings
from .console import Progress, print_table
from .errors import BenchInputError, require
from .report import write_report
from .store import DOCUMENT, ENVIRONMENT, Record, RunStore, to_json
from .suite import Suite
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


class StopFlag:
    """Turns true at the first Ctrl-C; the second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    @contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """Handle SIGINT while inside; only the main thread may, elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(_number: int, _frame: object) -> None:
            if self():
                raise KeyboardInterrupt
            self.set()
            print("interrupted: finishing this round and saving; press Ctrl-C again to abort", flush=True)

        previous = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one. Raises `BenchInputError` for a device that is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BenchInputError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BenchInputError(f"device {name} is not there; torch sees {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise BenchInputError(f"device {name} is not supported; use auto, cpu, cuda or cuda:N")
    return device


def run(options: RunOptions) -> int:
    """Run a suite, write its folder and print its table; returns the exit code.

    Raises `BenchInputError`, before anything is measured, for input that cannot be used.
    """
    for package in ("rich", "matplotlib", "jinja2", "scipy"):  # ask now, not after minutes of measuring
        require(package)
    begin = time.perf_counter()
    device, suite = choose_device(options.device), options.suite
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and streams of the clock are those of the current device
    cases = suite.chosen()
    runner.check_provider_names(cases, device, suite.providers)
    meters = energy_run.prepare(device, suite)
    clip = load_clip(options.input)
    store = RunStore.create(options.output)
    print(f"run {store.run_id}: {len(cases)} cases on {device}, results in {store.folder}", flush=True)
    ceilings = measure_ceilings(device, quick=suite.quick)
    described = environment.describe(
        device=device,
        suite=suite,
        argv=options.argv,
        clip=clip,
        ceilings=ceilings,
        energy=energy_run.describe(meters),
    )
    store.write(ENVIRONMENT, to_json(described))
    stop = StopFlag()
    session = runner.Session(
        suite=suite,
        setting=Setting(suite.seed, device, lambda: clip),
        ceilings=ceilings,
        meters=meters,
        deadline=begin + suite.time_budget_s if suite.time_budget_s > 0 else None,
        stop=stop,
    )
    try:
        records = _measure(cases, session, store, stop)
    finally:
        store.close()
    if not records:
        print(f"interrupted before the first case; {store.folder} holds no results", flush=True)
        return INTERRUPTED
    status = "interrupted" if stop() else "complete"
    if not stop():
        store.write(DOCUMENT, to_json(document.build(records, described, store.run_id, status)))
    print_table(records)
    print(f"report: {write_report(store.folder)}", flush=True)
    if stop():
        return INTERRUPTED
    if any(r["status"] == "failed" for r in records):
        return CASE_FAILED
    return energy_run.NO_ENERGY if energy_run.lacking(records, suite) else OK


def _measure(cases: Sequence[Case], session: runner.Session, store: RunStore, stop: StopFlag) -> list[Record]:
    """Run the cases until the end, an interrupt, or an abort; every record is stored before it is returned."""
    done: list[Record] = []
    try:
        with stop.on_interrupt(), Progress(len(cases)) as progress:
            for index, case in enumerate(cases):
                if stop():
                    break
                progress.start(case.id)
                records = runner.run_case(case, session, len(cases) - index)
                for record in records:
                    store.append(record)
                    done.append(record)
                progress.finish(records)
    except KeyboardInterrupt:
        stop.set()
    return done
