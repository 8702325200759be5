"""Cases called once in processes side by side, before anything is timed; and a shared process that is replaced when it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_kernels.bench import ahead, isolate, runner, suite
from jepa_kernels.bench.cases import load_cases
from jepa_kernels.bench.store import read_environment, read_results

from .conftest import Run
from .test_isolate import OWN, measured
from .test_resume import CASES, HERE, command
from .toys import toy_case

CPU = torch.device("cpu")
MARKING = '''
import os
from pathlib import Path
from tests.bench.toys import toy_case
from jepa_kernels.bench.cases import Provider

def marked(name, then):
    def run(x):
        (Path(__file__).parent / f"{name}-{os.getpid()}").touch()
        return then(x)
    return run

def fail(x):
    raise RuntimeError("no")

def cases():
    def case(name, then):
        parts = {"jk-cpu": marked(name, then), "torch-add": marked(name + "-peer", lambda x: x * 2)}
        return toy_case(name=name, providers=[Provider(n, run) for n, run in parts.items()])
    return [case("one", fail), case("two", lambda x: x * 2), case("three", fail)]
'''


def test_every_provider_is_called_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that fails stops nothing, the processes are several, and none outlives the limit."""
    own = tmp_path / "cases.py"
    own.write_text(MARKING)
    monkeypatch.setattr(ahead, "processes", lambda _device: 2)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parents[1]), *sys.path]))
    chosen = replace(suite.QUICK, own=str(own), cases=(), providers=())
    picture = tmp_path / "picture.png"
    _write_picture(picture)
    made = ahead.run(load_cases(own), chosen, CPU, picture, 0.1)  # less than a process needs to begin
    assert made["processes"] == 2 and made["ended"] == 0
    assert ahead.run(load_cases(own), chosen, CPU, picture, 500.0)["ended"] == 2
    names = [path.name.rsplit("-", 1) for path in tmp_path.iterdir() if path.suffix == ""]
    assert {name for name, _ in names} == {f"{name}{peer}" for name in ("one", "two", "three") for peer in ("", "-peer")}
    assert len({process for _, process in names}) == 2


def _write_picture(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32)).save(path)


def test_run_tells_what_was_called_ahead(toy_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    def pretended(cases: Any, _suite: Any, _device: Any, _video: Any, limit_s: float) -> dict[str, Any]:
        seen.append(([case.id for case in cases], limit_s))
        return {"processes": 3, "ended": 2, "seconds": 1.0}

    monkeypatch.setattr(ahead, "run", pretended)
    monkeypatch.setattr(suite, "QUICK", replace(suite.QUICK, ahead_s=100.0, time_budget_s=90.0))
    code, folder = toy_run([toy_case(), toy_case(name="other")])
    assert code == 0 and seen[0][0] == ["toy/double-fp32", "toy/other-fp32"] and 20 < seen[0][1] <= 30
    assert read_environment(folder)["ahead"] == [{"processes": 3, "ended": 2, "seconds": 1.0}]


def test_a_process_serves_case_after_case_until_one_ends_it(tmp_path: Path) -> None:
    """Of three cases the second kills the process that the first ran in: the third gets another."""
    own = tmp_path / "suite.toml"
    own.write_text(f'own = "{HERE / "own_cases.py"}"\nrestart = true\nprofile = false\nenergy = "off"\n[timing]\nrounds = 10\n')
    done = command("bench", "run", "--suite", str(own), "--output", str(tmp_path / "runs"), kill="b")
    assert done.returncode == 4, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    status = {name: {r["status"] for r in read_results(folder) if r["case_id"] == name} for name in CASES}
    assert status[CASES[1]] == {"failed"} and not (status[CASES[0]] | status[CASES[2]]) & {"failed", "skipped"}
    told = next(r["error"] for r in read_results(folder) if r["status"] == "failed")
    assert "was ended by SIGKILL" in told


def test_worker_is_used_again_and_left_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRASH_AT", "1")
    begun: list[int] = []
    real = subprocess.Popen

    def counted(command: Any, **options: Any) -> Any:
        if isolate.SERVE in command:
            begun.append(1)
        return real(command, **options)

    monkeypatch.setattr(subprocess, "Popen", counted)
    with isolate.Worker() as worker:
        first, crashed, last = measured(worker)
        assert crashed["status"] == "failed" and "SIGSEGV" in str(crashed["error"]) and first["stats"] and last["stats"]
        assert len(begun) == 2  # the one that crashed, and the one after it
    begun.clear()
    monkeypatch.setenv("CRASH_AT", "1000000")
    with isolate.Worker() as worker:
        for _ in range(2):
            assert all(record["stats"] for record in measured(worker))
        assert len(begun) == 1
        process = worker._process
    assert process is not None and process.poll() == 0


def test_process_whose_device_broke_leaves_and_names_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken device is one that cannot be waited for."""

    def broken(_device: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    left: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    monkeypatch.setattr(os, "_exit", left.append)
    isolate._leave_if_broken(CPU, ValueError("why"))
    assert not left
    isolate._leave_if_broken(torch.device("cuda"), ValueError("why"))
    assert left == [isolate.BROKEN] and "no longer works" in isolate._ended(isolate.BROKEN)


def test_failed_calls_are_told_while_checked_and_while_timed() -> None:
    def fails_later(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 20:
            raise RuntimeError("late")
        return x * 2

    from .toys import CEILINGS

    calls: list[int] = []
    told: list[Any] = []
    setting = runner.Setting(0, CPU, lambda: None)  # type: ignore[arg-type,return-value]
    session = runner.Session(
        replace(suite.QUICK, energy="off"), setting, CEILINGS, failed=lambda error: told.append(str(error)), checking=told.append
    )
    records = runner.run_case(toy_case(fails_later), session, 1)
    assert records[0]["status"] == "failed"
    assert told == ["jk-cpu", "torch-add", None, "jk-cpu", "late", None]


def test_case_that_the_time_cut_in_order_is_left_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not squeezed to a share: it keeps the whole of what is left, and counts as done only with enough rounds."""
    from .toys import CEILINGS

    setting = runner.Setting(0, CPU, lambda: None)  # type: ignore[arg-type,return-value]
    chosen = replace(suite.QUICK, energy="off", in_order=True, case_budget_s=5.0)
    session = runner.Session(chosen, setting, CEILINGS, deadline=runner.time.perf_counter() + 2.0)
    assert runner._budget(session, 100) > 1.5
    session.suite = replace(chosen, in_order=False)
    assert runner._budget(session, 100) < 0.1
    session.suite = chosen

    def slow(x: torch.Tensor) -> torch.Tensor:
        runner.time.sleep(0.4)
        return x * 2

    records = runner.run_case(toy_case(slow), session, 100)
    assert {r["status"] for r in records} == {"skipped"} and "within this case" in records[0]["error"]
    assert json.dumps(records) and OWN.is_file()
