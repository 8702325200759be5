"""Cases in other processes, so that one that crashes, hangs or breaks the device costs no other.

`bench run --isolate`: each case in a process of its own. A suite with `restart`: all in one process, until it ends and the next
case gets another. A provider that brings the process down is left out, and the case is measured again without it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import energy_run, runner
from .cases import Case, Setting
from .ceilings import Ceilings
from .devices import choose_device
from .errors import BROKEN
from .globs import LEAVE_OUT
from .interrupt import StopFlag
from .store import Record, to_json, write_atomic
from .suite import from_record
from .video import Clip, load_clip

REQUEST, RECORDS, CHECKING, LOG = "request.json", "records.json", "checking", "log"
POLL_S = 0.02
SERVE = "--serve"
COMMAND = (sys.executable, "-m", "jepa_kernels.bench.isolate")
LOG_END = 300  # characters of what a dead process wrote that its record quotes


@dataclass(frozen=True)
class _End:
    """How a process ended: its records, or a status and a reason, and the provider it was checking then."""

    records: list[Record] | None
    status: str = "failed"
    reason: str = ""
    checking: str | None = None


class Worker:
    """A process that measures one case after another; where one ends it, the next is begun in another."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._killed = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process is not None and self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # it leaves at the end of its requests
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._kill()
        self._process = None

    def measure(self, request: Path, limit_s: float) -> int:
        """0 once the records of the request are there, or the exit code of the process that did not get there.

        Raises `subprocess.TimeoutExpired` after `limit_s`, when the process was ended.
        """
        if self._process is None or self._process.poll() is not None or self._killed:
            self._begin()
        process = self._process
        assert process is not None and process.stdin is not None
        end = time.monotonic() + limit_s
        try:
            process.stdin.write(f"{request}\n")
            process.stdin.flush()
        except BrokenPipeError:
            return process.wait()
        while not request.with_name(RECORDS).is_file():
            if process.poll() is not None:
                return process.returncode or BROKEN
            if time.monotonic() >= end:
                self._kill()
                raise subprocess.TimeoutExpired(COMMAND, limit_s)
            time.sleep(POLL_S)
        return 0

    def said(self) -> str:
        """What the process has printed."""
        self._log.seek(0)
        return self._log.read()

    def _begin(self) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - as long as the process
        self._killed = False
        command = [*COMMAND, SERVE]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT, text=True)

    def _kill(self) -> None:
        assert self._process is not None
        self._killed = True
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may not let go of a kernel that hangs
            self._process.wait(10)


def run_case(
    case: Case, session: runner.Session, remaining: int, video: Path | None, worker: Worker | None = None
) -> list[Record]:
    """As `runner.run_case`, in the worker or in a process of its own; providers that end it are told as failed or timed out."""
    lost: dict[str, tuple[str, str]] = {}
    while True:
        end = _in_process(case, session, remaining, video, list(lost), worker)
        if end.records is not None:
            measured = {record["provider"]: record for record in end.records}
            break
        if end.checking is None or session.stop():
            names = [p.name for p in runner.select_providers(case, session.device, session.suite.providers)]
            lost |= {name: (end.status, end.reason) for name in names if name not in lost}
            measured = {}
            break
        lost[end.checking] = end.status, end.reason
    measured |= {record["provider"]: record for record in runner.unmeasured(case, lost, session)}
    return [measured[p.name] for p in case.providers(session.device) if p.name in measured]


def _in_process(
    case: Case, session: runner.Session, remaining: int, video: Path | None, lost: list[str], worker: Worker | None
) -> _End:
    suite = replace(session.suite, providers=(*session.suite.providers, *(LEAVE_OUT + name for name in lost)))
    left_s = None if session.deadline is None else session.deadline - time.perf_counter()
    request = {
        "case": case.id, "suite": asdict(suite), "device": str(session.device), "video": str(video or ""),
        "ceilings": session.ceilings.as_dict(), "left_s": left_s, "remaining": remaining,
    }  # fmt: skip
    limit_s = suite.case_limit_s + suite.case_budget_s
    with tempfile.TemporaryDirectory(prefix="jepa-kernels-case-") as name:
        folder = Path(name)
        path = write_atomic(folder / REQUEST, to_json(request))
        try:
            code, said = (_in_own if worker is None else functools.partial(_in_worker, worker))(path, limit_s)
        except subprocess.TimeoutExpired:
            return _End(None, "timeout", f"its process was stopped after {limit_s:.0f} s", _checking(folder))
        if code == 0:
            records: list[Record] = json.loads((folder / RECORDS).read_text(encoding="utf-8"))
            return _End(records)
        said = said.strip()[-LOG_END:]
        return _End(None, "failed", f"its process {_ended(code)}{': ' + said if said else ''}", _checking(folder))


def _in_own(request: Path, limit_s: float) -> tuple[int, str]:
    with open(request.with_name(LOG), "w+", encoding="utf-8", errors="replace") as log:
        code = subprocess.run([*COMMAND, str(request)], stdout=log, stderr=subprocess.STDOUT, timeout=limit_s).returncode
        log.seek(0)
        return code, log.read()


def _in_worker(worker: Worker, request: Path, limit_s: float) -> tuple[int, str]:
    code = worker.measure(request, limit_s)
    return code, worker.said() if code else ""


def _checking(folder: Path) -> str | None:
    path = folder / CHECKING
    return (path.read_text(encoding="utf-8") or None) if path.is_file() else None


def _ended(code: int) -> str:
    if code == BROKEN:
        return "left a device that no longer works"
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (" (the system may have run out of memory)" if name == "SIGKILL" else "")


def main(path: Path) -> int:
    """Serve the request in a JSON file: measure the case, and leave its records beside it."""
    request: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    begin, parent = time.perf_counter(), os.getppid()
    suite, device = from_record(request["suite"], path), choose_device(request["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    case = next(case for case in runner.chosen_cases(suite, device) if case.id == request["case"])
    clip = _clip(request["video"])
    stop = StopFlag()
    energy = replace(suite, energy="auto") if suite.energy == "require" else suite
    session = runner.Session(
        suite=suite,
        setting=Setting(suite.seed, device, lambda: clip),
        failed=functools.partial(_leave_if_broken, device),
        ceilings=Ceilings(**request["ceilings"]),
        meters=_meters(device, energy),
        deadline=None if request["left_s"] is None else begin + request["left_s"],
        stop=lambda: stop() or os.getppid() != parent,  # a killed parent asks for nothing more
        checking=lambda provider: path.with_name(CHECKING).write_text(provider or "", encoding="utf-8"),
    )
    with stop.on_interrupt():
        records = runner.run_case(case, session, request["remaining"])
    write_atomic(path.with_name(RECORDS), to_json(records))
    return 0


_meters = functools.cache(energy_run.prepare)  # measuring how often a counter is refreshed takes seconds


@functools.cache
def _clip(path: str) -> Clip:
    return load_clip(Path(path) if path else None)


def _leave_if_broken(device: torch.device, error: BaseException) -> None:
    """After an illegal access every later call on the device fails too, in this process: leave it to the next one."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(BROKEN)  # the interpreter's own end would wait for the device


def serve() -> int:
    """Measure the requests that the lines of the standard input name."""
    for line in sys.stdin:
        main(Path(line.rstrip("\n")))
    return 0


if __name__ == "__main__":
    sys.exit(serve() if sys.argv[1] == SERVE else main(Path(sys.argv[1])))
