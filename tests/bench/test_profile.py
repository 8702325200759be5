"""Profiling in a process of its own: the trace, the table, the parts of a step, and what to change."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

from jepa_kernels import cli
from jepa_kernels.bench import breakdown, other_profilers
from jepa_kernels.bench.memory import highest, peak_memory
from jepa_kernels.bench.profile import Request

OWN = str(Path(__file__).parent / "own_cases.py")


@dataclass
class Event:
    name: str
    self_cpu_time_total: float = 0.0
    cpu_parent: Event | None = None
    self_device_time_total: float = 0.0


CALL = Event(breakdown.CALL, 100.0)
ADAMW = Event("Optimizer.step#AdamW.step", 10.0, CALL)
NODE = Event("autograd::engine::evaluate_function: MmBackward0", 5.0, CALL)
EVENTS = [
    CALL, ADAMW, NODE,
    Event("aten::_foreach_add_", 90.0, ADAMW, 50.0),
    Event("aten::mm", 400.0, NODE, 300.0),
    Event("aten::mm", 200.0, CALL, 150.0),
    Event("aten::_foreach_lerp_", 45.0, CALL, 25.0),
    Event("jepa_kernels::ema_update_", 50.0, CALL, 25.0),
    Event("enumerate(DataLoader)#x", 100.0, CALL),
]  # fmt: skip


def test_parts_of_a_step_by_where_an_operator_was_called_from() -> None:
    found = breakdown.parts(EVENTS, 1000e-6, 1, device=False)
    assert {k: round(v * 1e6) for k, v in found.items()} == {
        "forward": 200, "backward": 405, "optimizer": 100, "target update": 95, "data": 100, "python and idle": 100,
    }  # fmt: skip


def test_kinds_of_work_by_the_operators_names() -> None:
    more = (("aten::copy_", 30.0), ("aten::gelu", 20.0), ("mkldnn::_linear_pointwise", 10.0))
    events = [*EVENTS, *(Event(name, own, CALL) for name, own in more)]
    found = breakdown.kinds(events, 1100e-6, 1, device=False)
    assert {k: round(v * 1e6) for k, v in found.items()} == {
        "matrix products": 610, "attention": 0, "patch embedding": 0, "copies, casts and gathers": 30,
        "pointwise, norms and sums": 125, "optimizer and target update": 195, "python and idle": 140,
    }  # fmt: skip


def test_on_a_device_what_no_kernel_fills_is_idle() -> None:
    found = breakdown.parts(EVENTS, 1000e-6, 1, device=True)
    assert found["backward"] == pytest.approx(300e-6) and found["python and idle"] == pytest.approx(450e-6)


def test_operators_are_per_call_and_sorted() -> None:
    rows = breakdown.operators(EVENTS, 2, device=False, top=2)
    assert [(r.name, r.part, r.calls, r.seconds) for r in rows] == [
        ("aten::mm", "backward", 0.5, pytest.approx(200e-6)),
        ("aten::mm", "forward", 0.5, pytest.approx(100e-6)),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "jk.masked_attention"),
        ("aten::index", "jk.patch_embed"),
        ("aten::_foreach_addcdiv_", "jk.AdamWEMA"),
        ("aten::copy_", "copies and casts"),
    ],
)
def test_advice_names_what_to_change(name: str, words: str) -> None:
    events = [CALL, Event(name, 900.0, CALL)]
    seconds = breakdown.parts(events, 1000e-6, 1, device=False)
    assert words in breakdown.advise(seconds, breakdown.operators(events, 1, device=False))[0]


def test_without_a_cause_the_leader_is_named() -> None:
    events = [Event("aten::mm", 1000.0)]
    (line,) = breakdown.advise(breakdown.parts(events, 1e-3, 1, device=False), breakdown.operators(events, 1, device=False))
    assert line == "no single cause stands out; aten::mm leads with 100%"


def test_profile_writes_a_trace_that_a_viewer_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "profile", "model/toy-a-fp32", "--own", OWN, "--provider", "torch-eager"]
    assert cli.main([*arguments, "--output", str(tmp_path), "--calls", "2"]) == 0
    out = capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "profile.json").read_text())
    with gzip.open(folder / found["trace"], "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count(breakdown.CALL) >= 2 and "aten::linear" in names
    assert sum(found["parts"].values()) == pytest.approx(found["wall_s"], rel=1e-6)
    assert found["operators"][0]["name"].startswith("aten::") and found["advice"]
    assert (folder / "profile.md").read_text().strip() in out and "What to change" in out
    assert "proton: needs a GPU" in out and "ncu: needs a GPU" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["model/*", "--own", OWN], 2, "matches 3 cases, profile takes one"),
        (["none/*", "--own", OWN], 2, "no case matches 'none/*'"),
        (["model/toy-a-fp32", "--own", OWN, "--provider", "jk-cpu"], 2, "known: torch-eager, torch-compiled-not"),
        (["model/toy-a-fp32", "--own", OWN, "--calls", "0"], 2, "at least one call"),
        (["model/toy-a-fp32", "--own", OWN, "--device", "cuda:99"], 5, "cuda:99 is not there"),
        (["model/toy-a-fp32", "--own", "/none.py"], 2, "is not a file"),
    ],
)
def test_mistakes_are_told(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str) -> None:
    assert cli.main(["bench", "profile", *arguments]) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_process_that_dies_exits_4_and_names_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILL_IN", "a")
    arguments = ["bench", "profile", "model/toy-a-fp32", "--own", OWN, "--provider", "torch-eager", "--calls", "200"]
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 4
    assert "ended with code -9; see" in capsys.readouterr().err


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(asdict(Request("model/toy-a-fp32", "torch-eager", "cpu", OWN, calls=4))))
    return path


def stub(folder: Path, text: str) -> None:
    (folder / "ncu").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "ncu").chmod(0o755)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 0", "ncu.ncu-rep: counters of the first"),
        ("echo '==ERROR== ERR_NVGPUCTRPERM'; exit 1", "NVreg_RestrictProfilingToAdminUsers=0"),
        ("exit 3", "ended with code 3, see"),
    ],
)
def test_ncu_where_it_is_runs_the_calls_alone(
    request_file: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    folder = tmp_path_factory.mktemp("bin")
    stub(folder, f"echo \"$@\" > {folder}/asked; {script}")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = other_profilers.run(request_file, "cuda:0")
    asked = (folder / "asked").read_text()
    assert words in found["ncu"] and "is not installed" in found["proton"]
    assert asked.strip().endswith(str(request_file.with_name("calls.py"))) and "--launch-count 200" in asked
    if "exit 0" not in script:
        assert "the command:" in found["ncu"]


def test_proton_runs_the_calls_alone(request_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def done(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        asked.append(" ".join(command))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", done)
    found = other_profilers.run(request_file, "cuda")
    assert "proton.hatchet" in found["proton"] and "proton-viewer" in found["proton"]
    assert "triton.profiler.proton" in asked[0] and asked[0].endswith("calls.py")


def test_script_for_other_profilers_makes_the_calls_and_no_more(request_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    other_profilers.run(request_file, "cuda")
    monkeypatch.undo()
    calls = request_file.with_name("calls.py")
    script = f"import torch, runpy, torch.profiler\ntorch.profiler.profile = None\nrunpy.run_path({str(calls)!r})"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_peak_memory_of_a_call_counts_what_it_holds_at_once() -> None:
    def call() -> torch.Tensor:
        a = torch.ones(1 << 20, dtype=torch.uint8)
        b = torch.ones(1 << 20, dtype=torch.uint8)
        del a
        c = torch.ones(1 << 19, dtype=torch.uint8)
        return b, c

    found = peak_memory(call, torch.device("cpu"))
    assert found.peak_bytes == 2 << 20


def test_peak_of_a_running_sum() -> None:
    assert highest([5, -2, 4, -7, 6]) == 7 and highest([]) == 0


def test_memory_that_cannot_be_read_is_null_with_a_reason() -> None:
    def breaks() -> None:
        raise RuntimeError("no")

    found = peak_memory(breaks, torch.device("cpu"))
    assert found.peak_bytes is None and found.reason == "RuntimeError: no"
