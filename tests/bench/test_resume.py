"""A killed run goes on where it stopped: the union equals a run that was never killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jepa_kernels import cli
from jepa_kernels.bench import resume
from jepa_kernels.bench.errors import BenchInputError
from jepa_kernels.bench.store import (
    DOCUMENT,
    ENVIRONMENT,
    REPORT,
    RESULTS,
    SUPERSEDED,
    RunStore,
    read_environment,
    read_results,
)

from .conftest import Run
from .toys import toy_case

HERE = Path(__file__).parent
CASES = [f"model/toy-{name}-fp32" for name in "abc"]


def command(*arguments: str, kill: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, over the cases of `own_cases.py`, with ceilings that are not measured."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "KILL_IN": kill}
    code = [sys.executable, "-m", "tests.bench.drive", *arguments]
    return subprocess.run(code, capture_output=True, text=True, env=environment, cwd=HERE.parents[1])


def keys(folder: Path) -> list[tuple[str, str]]:
    return [(r["case_id"], r["provider"]) for r in read_results(folder)]


@pytest.mark.parametrize("torn", [0, 7])
def test_killed_run_is_resumed_without_loss_or_doubling(tmp_path: Path, torn: int) -> None:
    own = str(HERE / "own_cases.py")
    killed = command("bench", "run", "--quick", "--no-profile", "--own", own, "--output", str(tmp_path), kill="b")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder,) = tmp_path.iterdir()
    before = read_results(folder)
    assert {r["case_id"] for r in before} == {CASES[0]} and "finished" not in read_environment(folder)
    if torn:  # as if the kill had come in the middle of a write
        results = folder / RESULTS
        results.write_bytes(results.read_bytes()[:-torn])
    done = command("bench", "run", "--resume", str(folder))
    assert done.returncode == 0, done.stderr
    assert keys(folder) == [(case, provider) for case in CASES for provider in ("torch-eager", "torch-compiled-not")]
    if not torn:
        assert read_results(folder)[: len(before)] == before  # what stood was not measured again
    document = json.loads((folder / DOCUMENT).read_text())
    assert [b["group"] for b in document["benchmarks"]] == [case for case in CASES for _ in range(2)]
    assert len(read_environment(folder)["resumed"]) == 1 and (folder / REPORT).is_file()
    assert (folder / SUPERSEDED).exists() == bool(torn)
    again = command("bench", "run", "--resume", str(folder))
    assert again.returncode == 2 and "is complete: nothing to resume" in again.stderr


def test_interrupted_cells_are_measured_again_and_the_old_ones_kept_aside(toy_run: Run) -> None:
    calls = 0

    def interrupted(x: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3000:
            os.kill(os.getpid(), signal.SIGINT)
        return x * 2  # type: ignore[operator]

    cases = [toy_case(interrupted), toy_case(name="never")]  # type: ignore[arg-type]
    code, folder = toy_run(cases)
    assert code == 130
    assert cli.main(["bench", "run", "--resume", str(folder)]) == 0
    assert keys(folder) == [(f"toy/{n}-fp32", p) for n in ("double", "never") for p in ("jk-cpu", "torch-add")]
    assert not {r["status"] for r in read_results(folder)} & {"interrupted", "skipped"}
    assert len((folder / SUPERSEDED).read_text().splitlines()) == 2


def test_another_machine_cannot_resume(toy_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = toy_run()
    environment = read_environment(folder)
    environment["hardware"]["cpu"]["name"] = "Another"
    del environment["finished"]
    (folder / ENVIRONMENT).write_text(json.dumps(environment))
    assert cli.main(["bench", "run", "--resume", str(folder)]) == 2
    assert "hardware.cpu.name: Another then" in capsys.readouterr().err


def test_resume_keeps_the_options_of_the_run(toy_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = toy_run()
    assert cli.main(["bench", "run", "--resume", str(folder), "--quick", "--seed", "3"]) == 2
    assert "leave out --quick, --seed" in capsys.readouterr().err


def test_unknown_case_in_the_folder_is_named(toy_run: Run) -> None:
    _, folder = toy_run()
    with pytest.raises(BenchInputError, match="toy/double-fp32; start a new run"):
        resume.split(folder, [toy_case(name="other")], {}, finished=False)


def test_another_schema_is_refused(toy_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = toy_run()
    environment = read_environment(folder) | {"schema": 99}
    (folder / ENVIRONMENT).write_text(json.dumps(environment))
    for arguments in (["report", str(folder)], ["run", "--resume", str(folder)], ["compare", str(folder), str(folder)]):
        assert cli.main(["bench", *arguments]) == 2
        assert "schema 99" in capsys.readouterr().err


def test_two_writers_of_one_folder_are_refused(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path)
    with pytest.raises(BenchInputError, match="being written by another process"):
        RunStore(store.folder)
    store.close()
    RunStore(store.folder).close()


def test_full_disk_keeps_whole_records_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore.create(tmp_path)
    store.append({"cell": 0})
    real, left = os.fsync, [1]

    def full(descriptor: int) -> None:
        if left:
            left.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BenchInputError, match=r"No space left on device; .* --resume"):
        store.append({"cell": 1, "long": "x" * 100_000})
    store.append({"cell": 2})
    store.close()
    assert [r["cell"] for r in read_results(store.folder)] == [0, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_that_takes_nothing_exits_2_with_one_line(
    toy_run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> Path:
        with open("/dev/full", "w") as file:
            file.write(text)
        return path

    monkeypatch.setattr("jepa_kernels.bench.store.write_atomic", full)
    code, _ = toy_run()
    error = capsys.readouterr().err
    assert code == 2 and "No space left on device" in error and error.count("\n") == 1


def test_folder_that_cannot_be_written_exits_2(toy_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = toy_run()

    def denied(*_arguments: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    environment = read_environment(folder)
    del environment["finished"]
    (folder / ENVIRONMENT).write_text(json.dumps(environment))
    with pytest.MonkeyPatch.context() as patch:  # root may write anywhere: the refusal is made
        patch.setattr("jepa_kernels.bench.store.write_atomic", denied)
        assert cli.main(["bench", "run", "--resume", str(folder)]) == 2
    assert "cannot be written: Permission denied" in capsys.readouterr().err


def test_interrupt_while_steps_are_profiled_still_reports(toy_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jepa_kernels.bench.session._profile_steps", interrupted)
    code, folder = toy_run()
    assert code == 0 and (folder / REPORT).is_file() and (folder / DOCUMENT).is_file()
