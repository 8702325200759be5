"""`bench run --isolate`: each case in a process of its own, so that one that crashes or hangs costs no other.

A provider that brings the process down in its first call is left out, and the case is measured again without it.
"""

from __future__ import annotations

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
from .globs import LEAVE_OUT
from .interrupt import StopFlag
from .store import Record, to_json, write_atomic
from .suite import from_record
from .video import load_clip

REQUEST, RECORDS, CHECKING, LOG = "request.json", "records.json", "checking", "log"
LIMIT_S = 900.0  # of one case, beyond its budget: compiling a whole step takes minutes
LOG_END = 300  # characters of what a dead process wrote that its record quotes


@dataclass(frozen=True)
class _End:
    """How a process ended: its records, or a status and a reason, and the provider it was checking then."""

    records: list[Record] | None
    status: str = "failed"
    reason: str = ""
    checking: str | None = None


def run_case(case: Case, session: runner.Session, remaining: int, video: Path | None) -> list[Record]:
    """As `runner.run_case`, in a process of its own; providers that end it are told as failed or timed out."""
    lost: dict[str, tuple[str, str]] = {}
    while True:
        end = _in_process(case, session, remaining, video, list(lost))
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


def _in_process(case: Case, session: runner.Session, remaining: int, video: Path | None, lost: list[str]) -> _End:
    suite = replace(session.suite, providers=(*session.suite.providers, *(LEAVE_OUT + name for name in lost)))
    left_s = None if session.deadline is None else session.deadline - time.perf_counter()
    request = {
        "case": case.id, "suite": asdict(suite), "device": str(session.device), "video": str(video or ""),
        "ceilings": session.ceilings.as_dict(), "left_s": left_s, "remaining": remaining,
    }  # fmt: skip
    limit_s = LIMIT_S + suite.case_budget_s
    with tempfile.TemporaryDirectory(prefix="jepa-kernels-case-") as name:
        folder = Path(name)
        path = write_atomic(folder / REQUEST, to_json(request))
        command = [sys.executable, "-m", "jepa_kernels.bench.isolate", str(path)]
        with open(folder / LOG, "w", encoding="utf-8") as log:
            try:
                code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s).returncode
            except subprocess.TimeoutExpired:
                return _End(None, "timeout", f"its process was stopped after {limit_s:.0f} s", _checking(folder))
        if code == 0:
            records: list[Record] = json.loads((folder / RECORDS).read_text(encoding="utf-8"))
            return _End(records)
        said = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip()[-LOG_END:]
        return _End(None, "failed", f"its process {_ended(code)}{': ' + said if said else ''}", _checking(folder))


def _checking(folder: Path) -> str | None:
    path = folder / CHECKING
    return (path.read_text(encoding="utf-8") or None) if path.is_file() else None


def _ended(code: int) -> str:
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
    clip = load_clip(Path(request["video"]) if request["video"] else None)
    stop = StopFlag()
    session = runner.Session(
        suite=suite,
        setting=Setting(suite.seed, device, lambda: clip),
        ceilings=Ceilings(**request["ceilings"]),
        meters=energy_run.prepare(device, replace(suite, energy="auto") if suite.energy == "require" else suite),
        deadline=None if request["left_s"] is None else begin + request["left_s"],
        stop=lambda: stop() or os.getppid() != parent,  # a killed parent asks for nothing more
        checking=lambda provider: path.with_name(CHECKING).write_text(provider or "", encoding="utf-8"),
    )
    with stop.on_interrupt():
        records = runner.run_case(case, session, request["remaining"])
    write_atomic(path.with_name(RECORDS), to_json(records))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
