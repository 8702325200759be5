"""Everything that needs a GPU in one budgeted run: tests, sanitizer, benchmark; one results folder. `jepa-kernels gpu-check`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

NO_GPU = 5
FAILED = 4
# What is kept for the steps that follow, so that a slow one does not starve them.
_RESERVE_S = {"tests": 180.0, "memcheck": 120.0, "racecheck": 90.0, "benchmark": 0.0}
# The sanitizer slows kernels down by an order of magnitude: it gets the smallest parity tests.
_SANITIZED = "not two_to_the_31 and not graph_capture"


@dataclass(frozen=True)
class Step:
    """One command of the check; `name` is also the name of its log."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a step ended: `passed`, `failed`, `timeout`, `no time` or, for want of a tool, `skipped`; with the reason."""

    name: str
    status: str
    seconds: float
    reason: str | None = None


def steps(tests: Path, output: Path, sanitizer: str | None) -> list[Step]:
    """The commands, most important first."""
    pytest = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
    found = [Step("tests", (*pytest, "-m", "gpu", str(tests)))]
    for tool in ("memcheck", "racecheck") if sanitizer else ():
        found.append(
            Step(
                tool,
                (
                    *(sanitizer or "", "--tool", tool, "--error-exitcode", "1"),
                    *(*pytest, "-m", "gpu", "-k", _SANITIZED, str(tests / "ops")),
                ),
            )
        )
    found.append(
        Step(
            "benchmark",
            (sys.executable, "-m", "jepa_kernels.cli", "bench", "run", "--device", "cuda", "--output", str(output)),
        )
    )
    return found


def run(budget_s: float, output: Path, tests: Path) -> int:
    """Runs the steps within the budget and writes `gpu_check.json` and a log a step under `output`.

    Returns 0 when every step passed, 4 when one failed or ran out of time, 5 when there is no GPU.
    """
    if not torch.cuda.is_available():
        print(
            "jepa-kernels: gpu-check needs an NVIDIA GPU and found none; `make test` is what runs without one",
            file=sys.stderr,
        )
        return NO_GPU
    output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + budget_s
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    outcomes = [] if sanitizer else [Outcome("memcheck", "skipped", 0.0, "compute-sanitizer was not found")]
    for step in steps(tests, output, sanitizer):
        outcomes.append(_run_step(step, end - time.monotonic(), output))
        print(f"{outcomes[-1].name}: {outcomes[-1].status} after {outcomes[-1].seconds:.0f} s", flush=True)
        _write(outcomes, output)
    return 0 if all(outcome.status in ("passed", "skipped") for outcome in outcomes) else FAILED


def _run_step(step: Step, remaining_s: float, output: Path) -> Outcome:
    limit = remaining_s - _RESERVE_S[step.name]
    if limit < 20:
        return Outcome(step.name, "no time", 0.0, "the time budget was spent by the steps before")
    command: Sequence[str] = step.command
    if step.name == "benchmark":  # it saves what it has and ends by itself
        command = (*command, "--time-budget", f"{max(limit - 20, 10):.0f}s")
    started = time.monotonic()
    with open(output / f"{step.name}.log", "w", encoding="utf-8") as log:
        try:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            code = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False, env=environment
            ).returncode
        except subprocess.TimeoutExpired:
            return Outcome(step.name, "timeout", time.monotonic() - started, f"stopped after {limit:.0f} s")
    reason = None if code == 0 else f"exit code {code}; see {step.name}.log"
    if (
        code == 0
        and step.name != "benchmark"
        and not re.search(r"\b[1-9]\d* passed", _tail(output / f"{step.name}.log"))
    ):
        reason = f"no test ran; see {step.name}.log"  # pytest is content when every test skips itself
    return Outcome(step.name, "failed" if reason else "passed", time.monotonic() - started, reason)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


def _write(outcomes: list[Outcome], output: Path) -> None:
    properties = torch.cuda.get_device_properties(0)
    found = {"gpu": properties.name, "torch": torch.__version__, "steps": [asdict(outcome) for outcome in outcomes]}
    (output / "gpu_check.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
