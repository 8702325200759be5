"""The check of a GPU machine, rehearsed without one: shares, logs, failures, going on, and a run through every stage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jepa_kernels import cli
from jepa_kernels.bench import environment, gpu_check, gpu_stages
from jepa_kernels.bench.errors import BenchInputError
from jepa_kernels.bench.gpu_stages import Piece, Plan, Stage
from jepa_kernels.bench.store import read_results

from .test_nvml_library import library  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "gpu_check.json",
    "build.log",
    "tests.log",
    "benchmark.log",
    "sanitizer.log",
    "results.jsonl",
    "environment.json",
    "report.html",
}


def python(name: str, code: str, **more: Any) -> Piece:
    return Piece(name, (sys.executable, "-c", code), **more)


@dataclass(frozen=True)
class Toy(Plan):
    """Stages given by the test."""

    given: tuple[Stage, ...] = ()

    def stages(self) -> list[Stage]:
        return list(self.given)


Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Run the check over toy stages of pieces; the exit code, and the outcome of each piece."""

    def run(*stages: Sequence[Piece] | str, budget_s: float = 60.0) -> tuple[int, dict[str, Any]]:
        given = tuple(Stage(f"s{i}", 1.0, f"s{i}.log", lambda p=p: p) for i, p in enumerate(stages))  # type: ignore[misc]
        plan = Toy(tmp_path, tmp_path / "work", given=given)
        code = gpu_check.run(budget_s, tmp_path / "out", tmp_path, plan=plan, no_gpu=lambda: None)
        state = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
        return code, {o["piece"]: (o["status"], o["reason"]) for o in state["pieces"]}

    return run


def test_failure_stops_nothing_and_is_told(check: Check, tmp_path: Path) -> None:
    code, found = check([python("bad", "print('why'); exit(3)"), python("next", "")], [python("last", "")])
    assert code == 4
    assert found["bad"] == ("failed", "exit code 3; see s0.log")
    assert found["next"][0] == found["last"][0] == "passed"
    assert "why" in (tmp_path / "out" / "s0.log").read_text()


def test_piece_that_others_need_voids_its_stage_alone(check: Check) -> None:
    code, found = check([python("probe", "exit(1)", needed=True), python("rest", "")], [python("other", "")])
    assert code == 4 and found["rest"][0] == "skipped" and "probe" in found["rest"][1]
    assert found["other"][0] == "passed"


def test_stage_without_pieces_tells_why_and_does_not_fail(check: Check) -> None:
    assert check("no such tool") == (0, {"s0": ("skipped", "no such tool")})


def test_slow_piece_is_stopped_with_its_children_and_leaves_the_others_their_share(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "LEAST_S", 0.5)
    child = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid())); import time; time.sleep(60)"
    slow = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    code, found = check([python("slow", slow), python("late", "")], [python("quick", "")], budget_s=6.0)
    assert code == 4 and found["slow"][0] == "timeout" and found["late"][0] == "no time"
    assert found["quick"][0] == "passed"
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    assert not status.exists() or "zombie" in status.read_text()  # dead, though nobody has asked for its exit code


def test_called_again_it_goes_on_with_what_is_left(check: Check, tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    stages = [python("done", count), python("left", count)], [python("bad", "exit(1)")]
    code, found = check(*stages, budget_s=0.001)
    assert code == 4 and {status for status, _ in found.values()} == {"no time"}
    assert not (tmp_path / "count").exists()
    code, found = check(*stages)
    assert code == 4 and found["done"][0] == found["left"][0] == "passed"
    code, found = check(*stages)
    assert code == 4 and (tmp_path / "count").read_text() == "xx"  # nothing ran twice


def test_test_run_without_a_test_is_a_failure_and_an_empty_file_is_skipped(check: Check) -> None:
    _, found = check(
        [
            python("none", "print('3 skipped')", tests=True),
            python("some", "print('2 passed, 1 skipped')", tests=True),
            python("empty", "exit(5)", tests=True),
        ]
    )
    assert found["none"][0] == "failed" and "no test ran" in found["none"][1]
    assert (found["some"][0], found["empty"][0]) == ("passed", "skipped")


def test_long_log_keeps_its_ends(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "MAX_LOG_BYTES", 4000)
    check([python("loud", "print('first'); print('x' * 100_000); print('last')")])
    text = (tmp_path / "out" / "s0.log").read_text()
    assert len(text) < 4000 and "first" in text and "last" in text and "left out" in text


def test_folder_of_another_commit_is_refused(check: Check, tmp_path: Path) -> None:
    check([python("a", "")])
    state = tmp_path / "out" / "gpu_check.json"
    state.write_text(state.read_text().replace('"commit": ', '"commit": "0000", "was": ', 1))
    with pytest.raises(BenchInputError, match="belongs to commit 0000"):
        check([python("a", "")])
    state.write_text("{")
    with pytest.raises(BenchInputError, match="cannot be read"):
        check([python("a", "")])


@pytest.mark.parametrize(("cells", "status"), [(["ok", "ok"], "passed"), (["ok", "skipped"], "no time")])
def test_benchmark_that_ran_out_of_time_is_not_done(check: Check, tmp_path: Path, cells: list[str], status: str) -> None:
    run = tmp_path / "work" / "r"
    write = "".join(
        f"p.joinpath({name!r}).write_text({text!r});"
        for name, text in (("environment.json", "{}"), ("results.jsonl", "".join(f'{{"status": "{c}"}}\n' for c in cells)))
    )
    code = f"import pathlib; p = pathlib.Path({str(run)!r}); p.mkdir(parents=True); {write}"
    _, found = check([python("suite", code, benchmark=True)])
    assert found["suite"][0] == status
    assert (tmp_path / "out" / "results.jsonl").read_text().count("\n") == 2  # copied to the flat folder


def test_benchmark_goes_on_from_the_flat_folder_alone(check: Check, tmp_path: Path) -> None:
    """Another machine has only what came back from the first."""
    check([python("a", "")])
    for name in ("environment.json", "results.jsonl"):
        (tmp_path / "out" / name).write_text("{}")
    (tmp_path / "work").rmdir()
    check([python("a", "")])
    assert (tmp_path / "work" / "resumed" / "results.jsonl").read_text() == "{}"
    (piece,) = Plan(ROOT, tmp_path / "work")._benchmark()
    assert piece.command[-2:] == ("--resume", str(tmp_path / "work" / "resumed"))


def test_stages_of_the_real_plan(tmp_path: Path) -> None:
    stages = {s.name: s for s in Plan(ROOT, tmp_path, sanitizer="/bin/compute-sanitizer").stages()}
    assert sum(s.share for s in stages.values()) == pytest.approx(1.0)
    one_by_one = {s.name: s for s in Plan(ROOT, tmp_path, workers=1).stages()}["tests"].pieces()
    named = [p.name for p in one_by_one if isinstance(p, Piece)]
    assert {"tests/ops/test_ema_update.py", "tests/ops/test_patch_embed_integration.py"} <= set(named)
    assert "masked_attention" in named[0] and "masked_attention" not in named[-1]
    first, others = ({s.name: s for s in Plan(ROOT, tmp_path, workers=4).stages()}["tests"]).pieces()
    assert isinstance(first, Piece) and isinstance(others, Piece)
    assert (first.name, others.name) == ("masked_attention", "others") and first.command[-1].endswith(".py")
    files = [argument for piece in (first, others) for argument in piece.command if argument.endswith(".py")]
    assert len(files) == len(named) and all("-n 4" in " ".join(piece.command) for piece in (first, others))
    first, *rest = (p for p in stages["sanitizer"].pieces() if isinstance(p, Piece))
    assert first.needed and {p.name.split()[0] for p in rest} == {"memcheck", "racecheck"}
    assert all(p.command[:2] == ("/bin/compute-sanitizer", "--tool") for p in (first, *rest))
    assert Plan(ROOT, tmp_path, sanitizer=None)._sanitize() == "compute-sanitizer was not found"
    logs = {s.log for s in stages.values()}
    assert len(logs | {gpu_check.STATE, *gpu_check.KEPT}) <= 8


def test_without_a_gpu_it_says_so_and_exits_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = gpu_check.run(60.0, tmp_path / "out", ROOT, no_gpu=lambda: "torch sees no NVIDIA GPU")
    assert code == 5 and "torch sees no NVIDIA GPU" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchInputError, match="cannot be written"):
        gpu_check.run(60.0, tmp_path / "file" / "out", ROOT, no_gpu=lambda: None)


CASES = '''
import torch
from jepa_kernels.bench.cases import Case, Provider, Work

def cases():
    return [Case(
        operator="toy", name="double", dtype="fp32", shape={"elements": 8},
        make_inputs=lambda setting: torch.rand(8, generator=setting.generator()) + 0.5,
        providers=lambda device: [Provider("own", lambda x: x * 2), Provider("torch-add", lambda x: x + x)],
        work=lambda x: Work(8, 64, 1, 8), reference=lambda x: [x.double() * 2], low_precision=lambda x: [x * 2],
        peer="torch-add",
    )]
'''
SUITE = '''
name = "gpu"
own = {own!r}
quick = true
profile = false
[timing]
rounds = 10
warmup_max_s = 0.1
'''


@dataclass(frozen=True)
class Rehearsal(Plan):
    """The real plan, but for the build, which would change this environment."""

    def _build(self) -> Sequence[Piece]:
        return [python("native modules", "print('built')")]


def test_rehearsal_of_every_stage_with_a_pretended_driver(
    tmp_path: Path,
    library: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, output = tmp_path / "tree", tmp_path / "out"
    (root / "tests/ops").mkdir(parents=True)
    (root / "tests/ops/test_toy.py").write_text(
        "import pytest\n@pytest.mark.gpu\ndef test_one(): pass\ndef test_other(): assert False\n"
    )
    (root / "benchmarks/suites").mkdir(parents=True)
    (root / "cases.py").write_text(CASES)
    (root / "benchmarks/suites/gpu.toml").write_text(SUITE.format(own=str(root / "cases.py")))
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text('#!/bin/sh\nshift 4\nexec "$@"\n')
    sanitizer.chmod(0o755)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    plan = Rehearsal(root, tmp_path / "work", device="cpu", sanitizer=str(sanitizer), workers=1)
    code = gpu_check.run(500.0, output, root, plan=plan, no_gpu=lambda: None)
    state = json.loads((output / "gpu_check.json").read_text())
    assert code == 0, state["pieces"]
    assert {p["piece"] for p in state["pieces"]} == {
        *("info", "doctor", "native modules", "tests/ops/test_toy.py", "suite", "probe"),
        *("memcheck test_toy.py", "racecheck test_toy.py"),
    }
    assert {path.name for path in output.iterdir()} == FILES  # flat, and eight of them
    assert all(path.stat().st_size < 16 << 20 for path in output.iterdir())
    assert state["environment"]["info"]["versions"]["torch"]
    boards = [f for f in state["environment"]["doctor"]["findings"] if f["name"] == "board 0"]
    assert any("Pretended GPU" in str(f["value"]) for f in boards)
    assert [r["provider"] for r in read_results(output)] == ["own", "torch-add"]
    assert "1 passed, 1 deselected" in (output / "tests.log").read_text()


def test_command_uses_the_parent_of_the_tests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[object] = []
    monkeypatch.setattr(gpu_check, "run", lambda *arguments: seen.extend(arguments) or 0)
    assert cli.main(["gpu-check", "--budget", "2m", "--tests", str(ROOT / "tests"), "--output", str(tmp_path)]) == 0
    assert seen == [120.0, tmp_path, ROOT]
    assert gpu_stages.FINISHING_S <= 30


def test_build_is_for_this_gpu_alone_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (piece,) = Plan(ROOT, tmp_path, capability=(9, 0))._build()
    assert piece.environment == (("JEPA_KERNELS_CUDA_ARCHITECTURES", "90a-real"),)
    text = (ROOT / "CMakeLists.txt").read_text()
    assert all(target in text for target in gpu_stages.TARGETS.values())  # each is one that a whole build has
    assert Plan(ROOT, tmp_path, capability=(7, 5))._build()[0].environment == ()
    monkeypatch.setenv("JEPA_KERNELS_CUDA_ARCHITECTURES", "all")
    assert Plan(ROOT, tmp_path, capability=(9, 0))._build()[0].environment == ()


def test_piece_sees_its_variables(check: Check) -> None:
    _, found = check([python("asks", "import os; exit(os.environ['X'] != 'y')", environment=(("X", "y"),))])
    assert found["asks"][0] == "passed"


def test_work_lies_under_the_tree_and_not_beside_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "stages", lambda _plan: [])
    root, output = tmp_path / "tree", tmp_path / "results" / "out"
    root.mkdir()
    assert gpu_check.run(10.0, output, root, no_gpu=lambda: None) == 0
    assert [path.name for path in output.parent.iterdir()] == ["out"] and (root / "runs" / "out-work").is_dir()


def test_copy_of_the_tree_without_history_is_told_apart_by_its_sources(tmp_path: Path) -> None:
    """Every file of the package counts, by name and content."""
    for name, text in (("python/a.py", "1"), ("kernels/configs/sm_90.json", "{}"), ("python/a.pyc", "x")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    digests = []
    for change in (lambda: None, lambda: (tmp_path / "python/a.pyc").write_text("y"),
                   lambda: (tmp_path / "kernels/configs/sm_90.json").write_text("{1}"),
                   lambda: (tmp_path / "python/a.py").rename(tmp_path / "python/b.py")):  # fmt: skip
        change()
        environment.sources.cache_clear()
        digests.append(environment.sources(tmp_path))
    environment.sources.cache_clear()
    assert digests[0] == digests[1] and len(set(digests)) == 3
    assert len(str(environment.commit()["sources"])) == 64


BREAKING = """
import torch
state = []
def wait():
    if state:
        raise RuntimeError("an illegal memory access")
torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, wait
def test_a(): pass
def test_b(): state.append(1)
def test_c(): pass
"""


@pytest.mark.parametrize("side_by_side", [False, True])
def test_tests_after_one_that_broke_the_device_do_not_fail_for_it(tmp_path: Path, side_by_side: bool) -> None:
    if side_by_side:
        pytest.importorskip("xdist")
    (tmp_path / "conftest.py").write_text("")
    (tmp_path / "test_breaking.py").write_text(BREAKING)
    options = ["-n", "1"] if side_by_side else []
    command = [sys.executable, "-m", "pytest", "-v", "-c", "/dev/null", "-p", "jepa_kernels.bench.broken_device", *options]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode != 0
    if side_by_side:  # a new process runs what is left
        assert "crashed while running" in done.stdout and "PASSED test_breaking.py::test_c" in done.stdout, done.stdout
    else:
        assert "broke the device" in done.stdout + done.stderr and "::test_c" not in done.stdout, done.stdout
