"""Cases in processes of their own: one that crashes or hangs is told, and costs the others nothing."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jepa_kernels.bench import isolate, runner
from jepa_kernels.bench.cases import Setting
from jepa_kernels.bench.store import read_environment, read_results
from jepa_kernels.bench.suite import QUICK
from jepa_kernels.bench.video import Clip

from .test_resume import CASES, HERE, command, keys
from .toys import CEILINGS

OWN = HERE / "crashing_cases.py"


def measured(worker: isolate.Worker | None = None) -> list[dict[str, object]]:
    """The records of the crashing case."""
    suite = replace(QUICK, own=str(OWN), cases=(), profile=False, isolate=True)
    setting = Setting(0, torch.device("cpu"), lambda: Clip(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "toy"))
    session = runner.Session(suite, setting, CEILINGS)
    (case,) = suite.chosen()
    return isolate.run_case(case, session, 1, None, worker)


def test_provider_that_crashes_in_its_first_call_is_left_out_and_the_others_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRASH_AT", "1")
    first, crashed, last = measured()
    assert [r["provider"] for r in (first, crashed, last)] == ["torch-eager", "crashes", "torch-again"]
    assert crashed["status"] == "failed" and "was ended by SIGSEGV" in str(crashed["error"])
    assert first["stats"] is not None and last["stats"] is not None and crashed["stats"] is None


def test_crash_while_timed_fails_the_case_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRASH_AT", "50")
    found = measured()
    assert len(found) == 3 and {r["status"] for r in found} == {"failed"}
    assert all("SIGSEGV" in str(r["error"]) for r in found)


def test_process_that_hangs_is_told_as_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(command: list[str], timeout: float, **_options: object) -> None:
        Path(command[-1]).with_name(isolate.CHECKING).write_text("")
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert [(r["status"], "was stopped after" in str(r["error"])) for r in measured()] == [("timeout", True)] * 3


def test_isolated_run_goes_on_after_a_killed_case_and_exits_4(tmp_path: Path) -> None:
    arguments = ("--own", str(HERE / "own_cases.py"), "--output", str(tmp_path))
    done = command("bench", "run", "--quick", "--no-profile", "--isolate", *arguments, kill="b")
    assert done.returncode == 4, done.stderr
    (folder,) = tmp_path.iterdir()
    assert keys(folder) == [(case, provider) for case in CASES for provider in ("torch-eager", "torch-compiled-not")]
    by_case = {case: {r["status"] for r in read_results(folder) if r["case_id"] == case} for case in CASES}
    assert by_case[CASES[1]] == {"failed"} and not (by_case[CASES[0]] | by_case[CASES[2]]) & {"failed", "skipped"}
    assert read_environment(folder)["suite"]["isolate"] is True
