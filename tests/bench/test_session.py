"""Whole runs of the command line over toy cases: exit codes, what is stored, and one clear line for a mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jepa_kernels import cli
from jepa_kernels.backends import BackendError
from jepa_kernels.bench import suite, summary
from jepa_kernels.bench.cases import Case, Provider, Work
from jepa_kernels.bench.clocks import DeviceGraphClock, WallClock
from jepa_kernels.bench.energy import Meters, Unavailable
from jepa_kernels.bench.energy.nvml import open_board
from jepa_kernels.bench.errors import BenchInputError, require
from jepa_kernels.bench.store import DOCUMENT, ENVIRONMENT, REPORT, read_environment, read_results
from jepa_kernels.bench.telemetry import GpuProbe

from .conftest import Run
from .fake_nvml import UUID, FakeBoard, FakeLibrary, VirtualTime, install
from .toys import CEILINGS, toy_case

SMALL_CACHE = replace(CEILINGS, last_level_cache_bytes=1 << 20)
ROOT = Path(__file__).resolve().parents[2]


def test_complete_run_leaves_everything(toy_run: Run) -> None:
    code, folder = toy_run()
    assert code == 0
    records = read_results(folder)
    assert [(r["provider"], r["correctness"]["passed"]) for r in records] == [("jk-cpu", True), ("torch-add", True)]
    assert all(r["status"] in ("ok", "inconclusive") and r["clock"] == "wall" for r in records)
    assert len(records[0]["samples"]["seconds"]) == suite.QUICK.timing.rounds
    assert records[0]["ratios"].keys() == {"torch-add"} and records[1]["ratios"] == {}
    environment = read_environment(folder)
    assert environment["finished"] >= environment["datetime"] and environment["system"]["processors"]
    assert environment["suite"]["name"] == "quick" and environment["input"]["source"] == "toy"
    assert environment["argv"][:3] == ["bench", "run", "--quick"]
    assert (folder / REPORT).is_file()
    assert not list(folder.glob("*.part"))


def test_missing_energy_is_null_with_a_reason(toy_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa_kernels.bench.energy.open_meters", lambda device: Meters(None, "no counter here"))
    _, folder = toy_run()
    energy = read_results(folder)[0]["energy"]
    assert energy["joules_per_call"] is None and energy["reason"] == "no counter here"


def test_energy_that_is_required_and_absent_ends_with_5_before_anything_runs(
    toy_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jepa_kernels.bench.energy.open_meters", lambda device: Meters(None, "no counter here"))
    code, folder = toy_run(None, "--energy", "require")
    error = capsys.readouterr().err
    assert code == 5 and "no counter here" in error and "jepa-kernels doctor" in error and error.count("\n") == 1
    assert not folder.exists()


def test_energy_switched_off_opens_no_meter(toy_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa_kernels.bench.energy.open_meters", lambda device: pytest.fail("opened"))
    code, folder = toy_run(None, "--energy", "off")
    assert code == 0 and read_results(folder)[0]["energy"]["reason"] == "switched off"


class CountingMeter:
    """40 W from the first reading on; refreshed at every reading, or never again after `reads` of them."""

    source, scope, max_gap_s = "rapl", "CPU packages", 60.0

    def __init__(self, reads: float = float("inf")) -> None:
        self.left = reads

    def restart(self) -> None:
        """It has no state."""

    def read(self) -> float:
        self.left -= 1
        if self.left < 0:
            raise Unavailable("the counter went away")
        return 40.0 * time.perf_counter()


def test_throttling_during_one_provider_makes_that_one_inconclusive(
    toy_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = FakeBoard(VirtualTime(), throttle_ns={270: 0})
    install(monkeypatch, FakeLibrary(board))
    monkeypatch.setattr("jepa_kernels.bench.energy_run.probe_for", lambda *_: (GpuProbe(open_board(UUID)), None))

    def heats(x: torch.Tensor) -> torch.Tensor:
        board.throttle_ns[270] += 1000
        return x * 2

    _, folder = toy_run([toy_case(heats)])
    ours, theirs = read_results(folder)
    assert ours["status"] == "inconclusive" and any(flag.startswith("throttled") for flag in ours["flags"])
    assert not any(flag.startswith("throttled") for flag in theirs["flags"])
    assert ours["timeline"]["throttled_s"]["hardware_thermal"] > 0 and ours["timeline"]["sm_mhz"]


@pytest.fixture
def short_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy is required, and its windows take no time."""
    short = replace(suite.QUICK, energy="require", energy_windows=2, energy_window_s=0.05, energy_idle_s=0.05)
    monkeypatch.setattr(suite, "QUICK", short)


@pytest.mark.usefixtures("short_energy")
def test_energy_of_a_run_reaches_its_records(toy_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa_kernels.bench.energy.open_meters", lambda device: Meters(CountingMeter()))
    code, folder = toy_run()
    assert code == 0
    ours, theirs = read_results(folder)
    assert ours["energy"]["mean_w"] == pytest.approx(40.0, rel=0.02)
    assert ours["energy"]["ratios"].keys() == {"torch-add"} and theirs["energy"]["ratios"] == {}
    phases = [w["phase"] for w in ours["timeline"]["windows"]]
    assert phases == ["idle", *["energy"] * len(ours["energy"]["windows"]), "idle"]
    assert ours["timeline"]["phase"].count("round") == suite.QUICK.timing.rounds
    assert ours["energy_model"]["measured"] is False
    environment = read_environment(folder)
    assert environment["energy"]["source"] == "rapl" and environment["energy"]["update_s"] > 0


@pytest.mark.usefixtures("short_energy")
def test_required_energy_that_is_lost_on_the_way_keeps_the_times_and_exits_5(
    toy_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepa_kernels.bench.energy.open_meters", lambda device: Meters(CountingMeter(30)))
    code, folder = toy_run()
    records = read_results(folder)
    assert code == 5 and all(r["stats"] is not None for r in records)
    assert records[0]["energy"]["joules_per_call"] is None and "went away" in records[0]["energy"]["reason"]
    assert (folder / REPORT).is_file()


def test_document_is_read_by_pytest_benchmark(toy_run: Run) -> None:
    _, folder = toy_run()
    document = json.loads((folder / DOCUMENT).read_text())
    assert [b["name"] for b in document["benchmarks"]] == ["toy/double-fp32[jk-cpu]", "toy/double-fp32[torch-add]"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(folder / DOCUMENT), "--columns=median,rounds"],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "jk-cpu" in done.stdout


def wrong(x: torch.Tensor) -> torch.Tensor:
    return x * 2.1


def breaks(_x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("cannot")


def not_here(_x: torch.Tensor) -> torch.Tensor:
    raise BackendError("no such machine")


def no_memory(_x: torch.Tensor) -> torch.Tensor:
    raise torch.cuda.OutOfMemoryError("full")


def most_of_what_is_free(x: torch.Tensor) -> torch.Tensor:
    free = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert free is not None
    return torch.empty(int(free[1]) * 1024 * 19 // 20 // 4)[:8].copy_(x)  # no page is written: Linux grants it unless bounded


@pytest.mark.parametrize(
    ("run", "status", "words", "code"),
    [
        (wrong, "failed", "wrong result", 4),
        (breaks, "failed", "RuntimeError: cannot", 4),
        (not_here, "unsupported", "no such machine", 0),
        (no_memory, "oom", "full", 0),
        pytest.param(
            most_of_what_is_free, "oom", "can't allocate memory", 0,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="the bound reads /proc"),
        ),
    ],
)
def test_provider_that_cannot_is_told_and_not_timed(
    toy_run: Run, run: Callable[[torch.Tensor], torch.Tensor], status: str, words: str, code: int
) -> None:
    found, folder = toy_run([toy_case(run)])
    ours, theirs = read_results(folder)
    assert found == code
    assert (ours["status"], ours["stats"]) == (status, None) and words in ours["error"]
    assert theirs["stats"] is not None


def test_yardstick_is_timed_unchecked_and_never_the_fastest_form(toy_run: Run) -> None:
    providers = [
        Provider("jk-cpu", lambda x: x * 2),
        Provider("torch-copy", lambda x: x.clone(), yardstick=True),
        Provider("torch-add", lambda x: x + x),
    ]
    code, folder = toy_run([toy_case(providers=providers)])
    records = read_results(folder)
    ours, yardstick, _ = records
    assert code == 0 and yardstick["yardstick"] and not yardstick["correctness"]["max_error"]
    assert "torch-copy" in ours["ratios"]
    assert summary.fastest_torch(records, ours["case_id"]) == "torch-add"
    assert "yardstick" in summary.rows(records)[1].cells


def test_support_is_asked_before_anything_runs(toy_run: Run) -> None:
    provider = Provider("jk-cuda", breaks, supports=lambda _x: "needs a GPU")
    code, folder = toy_run([toy_case(providers=[provider, Provider("torch-add", lambda x: x + x)])])
    assert code == 0 and read_results(folder)[0]["error"] == "needs a GPU"


def test_case_whose_inputs_break_does_not_end_the_run(toy_run: Run) -> None:
    def no_inputs(_setting: object) -> object:
        raise ValueError("no pixels")

    code, folder = toy_run([replace(toy_case(name="broken"), make_inputs=no_inputs), toy_case()])
    assert code == 4
    assert [r["status"] == "failed" for r in read_results(folder)] == [True, True, False, False]


def test_interrupt_saves_the_samples_and_exits_130(toy_run: Run) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    calls = 0

    def interrupted(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3000:
            os.kill(os.getpid(), signal.SIGINT)
        return x * 2

    code, folder = toy_run([toy_case(interrupted), toy_case(name="never")])
    assert code == 130
    records = read_results(folder)
    assert [(r["case_id"], r["status"]) for r in records] == [("toy/double-fp32", "interrupted")] * 2
    assert all(r["stats"] is not None for r in records)
    assert (folder / REPORT).is_file() and "finished" not in read_environment(folder)
    assert json.loads((folder / DOCUMENT).read_text())["jepa"]["status"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_spent_time_budget_skips_the_rest(toy_run: Run) -> None:
    code, folder = toy_run([toy_case(), toy_case(name="late")], "--time-budget", "0.001s")
    assert code == 0
    assert {r["status"] for r in read_results(folder)} == {"skipped"}
    assert "time budget" in read_results(folder)[-1]["error"]


def test_provider_glob_selects(toy_run: Run) -> None:
    _, folder = toy_run(None, "--provider", "torch-*")
    assert [r["provider"] for r in read_results(folder)] == ["torch-add"]


def test_globs_that_leave_out(toy_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [toy_case(), toy_case(name="other")]
    _, folder = toy_run(cases, "--provider", "!torch-*", "--filter", "toy/*", "--filter", "!*other*")
    assert [(r["case_id"], r["provider"]) for r in read_results(folder)] == [("toy/double-fp32", "jk-cpu")]
    code, _ = toy_run(cases, "--filter", "!toy/*")
    assert code == 2 and "no case is left by '!toy/*'" in capsys.readouterr().err


def test_baseline_is_what_ratios_are_quoted_against(toy_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    providers = [Provider(name, lambda x: x * 2) for name in ("jk-cpu", "torch-add", "torch-other")]
    cases = [toy_case(providers=providers), toy_case(name="lacks")]
    _, folder = toy_run(cases, "--baseline", "torch-other")
    by_case = {r["case_id"]: r["peer"] for r in read_results(folder)}
    assert by_case == {"toy/double-fp32": "torch-other", "toy/lacks-fp32": "torch-add"}
    assert "torch-other" in read_results(folder)[0]["ratios"]
    code, _ = toy_run(cases, "--baseline", "torch-none")
    assert code == 2 and "no case has the baseline 'torch-none'; known: jk-cpu" in capsys.readouterr().err


def test_provider_without_memory_is_not_tried_on_larger_cases(toy_run: Run) -> None:
    tried: list[int] = []

    def hungry(x: torch.Tensor) -> torch.Tensor:
        tried.append(1)
        raise torch.cuda.OutOfMemoryError("full")

    def sized(name: str, moved: int) -> Case:
        return replace(toy_case(hungry, name=name), work=lambda _x: Work(flops=8, bytes=moved, samples=1, tokens=8))

    _, folder = toy_run([sized("middle", 64), sized("large", 128), sized("small", 32)])
    ours = [r for r in read_results(folder) if r["provider"] == "jk-cpu"]
    assert [r["status"] for r in ours] == ["oom"] * 3 and len(tried) == 2
    assert "memory ran out on toy/middle-fp32" in ours[1]["error"]


def test_document_alone_on_stdout(toy_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = toy_run(None, "--json", "-")
    captured = capsys.readouterr()
    assert code == 0 and json.loads(captured.out) == json.loads((folder / DOCUMENT).read_text())
    assert "report:" in captured.err and "toy/double-fp32" in captured.err


def test_document_in_a_file_and_a_file_that_cannot_be_written(
    toy_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.json"
    code, folder = toy_run(None, "--json", str(target))
    assert code == 0 and target.read_text() == (folder / DOCUMENT).read_text() and "report:" in capsys.readouterr().out
    code, _ = toy_run(None, "--json", str(tmp_path / "none" / "out.json"))
    assert code == 2 and "--json" in capsys.readouterr().err


def test_device_that_is_not_there_exits_5(toy_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = toy_run(None, "--device", "cuda:99")
    assert code == 5 and "device cuda:99 is not there" in capsys.readouterr().err


def suite_file(folder: Path, text: str) -> str:
    path = folder / "suite.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--filter", "no-such-*"], "no case matches 'no-such-*'"),
        (["--provider", "jk-metal"], "no provider matches 'jk-metal'; known: jk-cpu, torch-add"),
        (["--time-budget", "soon"], "--time-budget 'soon' is not a duration"),
        (["--device", "toaster"], "unknown device 'toaster'"),
        (["--clock", "device_graph"], "clock device_graph needs a GPU"),
        (["--clock", "sundial"], "timing.clock 'sundial' is not one of"),
        (["--tag", "nothing"], "no case has any of the tags nothing"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    toy_run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, _ = toy_run(None, *arguments)
    error = capsys.readouterr().err
    assert code == 2 and words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour = 1", "unknown key colour"),
        ("[timing]\nround = 3", "unknown key timing.round"),
        ("[timing]\nrounds = 'many'", "timing.rounds must be int"),
        ("seed = true", "seed must be int"),
        ("case_budget_s = -1", "must not be negative"),
        ("[timing]\ncache = 'lukewarm'", "timing.cache 'lukewarm' is not one of warm, cold"),
        ("cases = 'all'", "must be a list of strings"),
        ("name =", "is not TOML"),
        ("tags = ['nothing']", "no case has any of the tags nothing"),
    ],
)
def test_suite_mistakes_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, words: str
) -> None:
    code = cli.main(["bench", "list", "--suite", suite_file(tmp_path, text)])
    error = capsys.readouterr().err
    assert code == 2 and words in error and error.count("\n") == 1


def test_missing_suite_and_argparse_mistakes_exit_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["bench", "list", "--suite", str(tmp_path / "none.toml")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert cli.main(["bench", "fly"]) == 2
    assert cli.main(["bench", "--help"]) == 0


def test_output_under_a_file_exits_2(toy_run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _ = toy_run(None, "--output", str(tmp_path / "file" / "runs"))
    assert code == 2 and "cannot be written" in capsys.readouterr().err


def test_missing_package_names_the_extra() -> None:
    with pytest.raises(BenchInputError, match=r"pip install 'jepa-kernels\[bench\]'"):
        require("no_such_package_anywhere.part")


@pytest.mark.parametrize("name", ["quick", "full"])
def test_suite_files_are_the_built_in_suites(name: str) -> None:
    loaded = suite.load_suite(ROOT / "benchmarks" / "suites" / f"{name}.toml")
    assert loaded == {"quick": suite.QUICK, "full": suite.FULL}[name]


def test_dumped_suite_reads_back_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["bench", "run", "--quick", "--filter", "train_step/*", "--cache", "cold", "--dump-config"]
    assert cli.main(arguments) == 0
    loaded = suite.load_suite(Path(suite_file(tmp_path, capsys.readouterr().out)))
    cold = replace(suite.QUICK.timing, cache="cold")
    assert loaded == replace(suite.QUICK, cases=("train_step/*",), timing=cold)


def test_dry_run_names_the_cells_and_the_time(toy_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = toy_run(None, "--dry-run")
    out = capsys.readouterr().out
    assert code == 0 and not output.exists()
    assert "toy/double-fp32: jk-cpu, torch-add" in out and re.search(r"1 cases on cpu: about \d+\.\d min", out)


def test_cold_run_says_how_many_bytes_made_it_cold(toy_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa_kernels.bench.session.measure_ceilings", lambda device, quick: SMALL_CACHE)
    _, folder = toy_run(None, "--cache", "cold")
    for record in read_results(folder):
        assert record["cache"]["state"] == "cold"
        assert record["cache"]["touched_bytes"] >= 3 * SMALL_CACHE.last_level_cache_bytes
        assert record["samples"]["calls_per_sample"] == 1


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("4m", 240), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert cli.parse_duration("--time-budget", text) == seconds


def test_nothing_outside_imports_the_harness() -> None:
    """But the command line, and tuning, which times with it and which nothing but the command line imports."""
    package = ROOT / "python" / "jepa_kernels"
    for path in package.rglob("*.py"):
        parts, text = path.relative_to(package).parts, path.read_text()
        if not {"bench", "tune"} & set(parts) and path.name != "cli.py":
            assert "jepa_kernels.bench" not in text and "from .bench" not in text and "from ..bench" not in text, path
        if "tune" not in parts and path.name != "cli.py":
            assert "jepa_kernels.tune" not in text and "from .tune" not in text and "from ..tune" not in text, path


def test_environment_says_what_and_where(toy_run: Run) -> None:
    _, folder = toy_run()
    environment = json.loads((folder / ENVIRONMENT).read_text())
    assert environment["versions"]["torch"] and environment["ceilings"]["copy_bytes_per_s"] > 0
    assert environment["system"]["threads"] == torch.get_num_threads()
    assert environment["commit"]["id"] is None or len(environment["commit"]["id"]) == 40


def test_energy_windows_replay_the_graph_that_was_timed(toy_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed: list[str] = []

    class Graphs(DeviceGraphClock):
        """Captures nothing, and tells that it was replayed."""

        def measure(self, call: Callable[[], object], calls: int) -> float:
            return WallClock().measure(call, calls)

        def _capture(self, call: Callable[[], object]) -> Callable[[], object]:
            return lambda: (replayed.append("graph"), call())

    short = replace(suite.QUICK, energy_windows=1, energy_window_s=0.02, energy_idle_s=0.02)
    monkeypatch.setattr(suite, "QUICK", short)
    monkeypatch.setattr("jepa_kernels.bench.runner.clock_for", lambda device, name: Graphs())
    monkeypatch.setattr("jepa_kernels.bench.energy.open_meters", lambda device: Meters(CountingMeter()))
    _, folder = toy_run()
    assert replayed and read_results(folder)[0]["energy"]["joules_per_call"] is not None
