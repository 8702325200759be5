"""Everything that needs a GPU in one budgeted run: `jepa-kernels gpu-check`.

The results lie in one flat folder of at most eight files: `gpu_check.json` (outcome of every piece, environment), a log
a stage, and of the benchmark `results.jsonl`, `environment.json` and `report.html`. Called again on that folder it goes
on with what is left. Nothing is downloaded. A piece that fails stops none of the following; the exit code tells.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .environment import commit
from .errors import BenchInputError
from .gpu_stages import FINISHING_S, Piece, Plan, Stage
from .store import ENVIRONMENT, REPORT, RESULTS, to_json, write_atomic

PASSED, FAILED, NO_GPU = 0, 4, 5
SCHEMA = 1
STATE = "gpu_check.json"
KEPT = (RESULTS, ENVIRONMENT, REPORT)  # of the benchmark's folder
FINAL = ("passed", "failed", "skipped")  # what is not run again when the check goes on
MAX_LOG_BYTES = 4 << 20
LEAST_S = 5.0  # no piece is begun with less
COLLECT_S = 5.0  # how often finished cells are copied to the folder, in case the whole machine is stopped


@dataclass(frozen=True)
class Outcome:
    """How a piece ended: `passed`, `failed`, `skipped`, `timeout` or `no time`; with the reason."""

    stage: str
    piece: str
    status: str
    seconds: float = 0.0
    reason: str | None = None


def why_no_gpu() -> str | None:
    """Why there is no GPU for the check, or None."""
    import torch

    if torch.cuda.is_available():  # asks the driver, and leaves no context that would count as another process
        return None
    return "torch is built without CUDA" if torch.version.cuda is None else "torch sees no NVIDIA GPU"


class Check:
    """One call of the check over a folder."""

    def __init__(self, output: Path, plan: Plan, end: float, now: Callable[[], float] = time.monotonic) -> None:
        self.output, self.plan, self._end, self._now = output, plan, end, now
        self.outcomes: dict[tuple[str, str], Outcome] = {}
        self.parts: dict[str, Any] = {}  # JSON that the environment's pieces print
        self._load()

    def _load(self) -> None:
        """What an earlier call of the same commit left. Raises `BenchInputError` for a folder of another one."""
        path = self.output / STATE
        if not path.is_file():
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            found = [Outcome(**entry) for entry in before["pieces"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchInputError(f"{path} cannot be read: {error}; choose another --output") from error
        now = _identity()
        if before.get("schema") != SCHEMA or before.get("commit") != now:
            of = before.get("commit")
            raise BenchInputError(f"{self.output} belongs to commit {of}, this is {now}; choose another --output")
        self.parts = before["environment"]
        self.outcomes = {(o.stage, o.piece): o for o in found if o.status in FINAL}
        self._restore()

    def _restore(self) -> None:
        """The benchmark's run folder from the flat folder, where this machine does not have it."""
        run = self.plan.work / "resumed"
        if any(self.plan.work.glob("*")) or not (self.output / ENVIRONMENT).is_file():
            return
        run.mkdir(parents=True)
        for name in KEPT:
            if (self.output / name).is_file():
                shutil.copy(self.output / name, run / name)

    def run(self) -> int:
        """Run every stage within its share of what is left; the exit code."""
        stages = self.plan.stages()
        for index, stage in enumerate(stages):
            left = max(self._end - self._now(), 0.0)
            share = stage.share / sum(s.share for s in stages[index:])
            self._run_stage(stage, self._now() + left * share)
        bad = [o for o in self.outcomes.values() if o.status not in ("passed", "skipped")]
        unfinished = sum(o.status not in FINAL for o in bad)
        if unfinished:
            print(f"{unfinished} pieces are left; the same command goes on with them", flush=True)
        return FAILED if bad else PASSED

    def _run_stage(self, stage: Stage, end: float) -> None:
        pieces = stage.pieces()
        if isinstance(pieces, str):
            return self._keep(Outcome(stage.name, stage.name, "skipped", 0.0, pieces))
        void: str | None = None
        for piece in pieces:
            known = self.outcomes.get((stage.name, piece.name))
            if known is None and void is not None:
                self._keep(Outcome(stage.name, piece.name, "skipped", 0.0, void))
            elif known is None:
                self._keep(self._run_piece(stage, piece, end - self._now()))
            outcome = self.outcomes[stage.name, piece.name]
            if piece.needed and outcome.status != "passed":
                void = f"{piece.name}: {outcome.reason}"
        return None

    def _keep(self, outcome: Outcome) -> None:
        """Note an outcome on the disk at once: the machine may be taken away at any time."""
        self.outcomes[outcome.stage, outcome.piece] = outcome
        reason = f" ({outcome.reason})" if outcome.reason else ""
        print(f"{outcome.stage}: {outcome.piece}: {outcome.status} after {outcome.seconds:.0f} s{reason}", flush=True)
        pieces = [asdict(o) for o in self.outcomes.values()]
        state = {"schema": SCHEMA, "commit": _identity(), "pieces": pieces, "environment": self.parts}
        write_atomic(self.output / STATE, to_json(state))

    def _run_piece(self, stage: Stage, piece: Piece, limit: float) -> Outcome:
        if limit < LEAST_S:
            return Outcome(stage.name, piece.name, "no time", 0.0, "the stage's share of the time was spent")
        command: Sequence[str] = piece.command
        if piece.benchmark:  # it ends by itself and saves every cell
            command = (*command, "--time-budget", f"{max(limit - FINISHING_S, 1):.0f}s")
        log = self.output / stage.log
        mark = log.stat().st_size if log.is_file() else 0
        begin = self._now()
        code = self._wait(piece.name, command, log, limit, piece.environment)
        seconds, text = self._now() - begin, _text_after(log, mark)
        if stage.name == "environment":
            self.parts[piece.name] = _json_in(text)
        _trim(log)
        if code is None:
            return Outcome(stage.name, piece.name, "timeout", seconds, f"stopped after {limit:.0f} s")
        return self._judge(stage, piece, code, seconds, text)

    def _judge(self, stage: Stage, piece: Piece, code: int, seconds: float, text: str) -> Outcome:
        if piece.tests and code == 5:
            return Outcome(stage.name, piece.name, "skipped", seconds, "no test of it is meant for this")
        left = self._cells_left() if piece.benchmark else 0
        if left:
            return Outcome(stage.name, piece.name, "no time", seconds, f"exit code {code}, {left} cells are left")
        if code != 0:
            return Outcome(stage.name, piece.name, "failed", seconds, f"exit code {code}; see {stage.log}")
        if piece.tests and not re.search(r"\b[1-9]\d* passed", text):  # pytest is content when every test skips itself
            return Outcome(stage.name, piece.name, "failed", seconds, f"no test ran; see {stage.log}")
        return Outcome(stage.name, piece.name, "passed", seconds)

    def _cells_left(self) -> int:
        """Cells that the time budget of the benchmark did not reach."""
        path = self.output / RESULTS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return sum(json.loads(line)["status"] == "skipped" for line in lines)

    def _wait(
        self, name: str, command: Sequence[str], log: Path, limit: float, more: Sequence[tuple[str, str]] = ()
    ) -> int | None:
        """Exit code of a command whose output goes to the log; None when it was stopped after `limit` seconds."""
        end = self._now() + limit
        with open(log, "ab") as file:
            file.write(f"\n===== {name}: {' '.join(command)}\n".encode())
            file.flush()
            environment = {**os.environ, "PYTHONUNBUFFERED": "1", **dict(more)}
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=self.plan.root, env=environment, start_new_session=True
            )
            try:
                while True:
                    try:
                        return process.wait(min(COLLECT_S, max(end - self._now(), 0.0)))
                    except subprocess.TimeoutExpired:
                        self._collect()
                    if self._now() >= end:
                        return None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # the session it began: compilers and workers with it
                    process.wait()
                self._collect()

    def _collect(self) -> None:
        """Copy what the benchmark has so far to the flat folder."""
        runs = sorted(path for path in self.plan.work.glob("*") if (path / ENVIRONMENT).is_file())
        for name in KEPT:
            if runs and (runs[-1] / name).is_file():
                shutil.copy(runs[-1] / name, self.output / name)


def _identity() -> str | None:
    """The commit, or where a copy of the tree has no history, the digest of its sources."""
    found = commit()
    return found["id"] or found["sources"]


def _text_after(log: Path, mark: int) -> str:
    return log.read_bytes()[mark:].decode("utf-8", errors="replace")


def _json_in(text: str) -> Any:
    """The JSON object that a command printed among other lines, or what it printed."""
    begin = text.find("\n{")
    try:
        return json.loads(text[begin:])
    except ValueError:
        return text[-2000:]


def _trim(log: Path) -> None:
    """Keep the beginning and the end of a log that has grown too long."""
    data = log.read_bytes()
    if len(data) > MAX_LOG_BYTES:
        quarter = MAX_LOG_BYTES // 4
        log.write_bytes(data[:quarter] + b"\n===== left out here\n" + data[-2 * quarter :])


def run(
    budget_s: float,
    output: Path,
    root: Path,
    *,
    plan: Plan | None = None,
    no_gpu: Callable[[], str | None] = why_no_gpu,
) -> int:
    """Check within a budget; 0 when all passed, 4 when a piece failed or time ran out, 5 when there is no GPU."""
    end = time.monotonic() + budget_s
    reason = no_gpu()
    if reason is not None:
        print(
            f"jepa-kernels: gpu-check needs an NVIDIA GPU and found none ({reason}); `make test` is what runs without one",
            file=sys.stderr,
        )
        return NO_GPU
    output, root = output.resolve(), root.resolve()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchInputError(f"output folder {output} cannot be written: {error.strerror}") from error
    chosen = plan or Plan(root, root / "runs" / f"{output.name}-work")  # not beside the output: what lies there may be counted
    chosen.work.mkdir(parents=True, exist_ok=True)
    return Check(output, chosen, end).run()
