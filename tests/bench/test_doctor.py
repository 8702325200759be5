"""The doctor on pretended machines: each lack has its reason and its fix, and only a requirement changes the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jepa_kernels import cli
from jepa_kernels.bench import doctor
from jepa_kernels.bench.doctor import Finding, Machine

from .fake_nvml import UUID, FakeBoard, FakeLibrary, VirtualTime, install
from .test_energy_rapl import zone
from .test_telemetry import machine as pretend_proc


def look(root: Path, devices: tuple[str, ...] = (), tools: tuple[str, ...] = ()) -> dict[str, Finding]:
    """The findings on a machine whose files lie under `root`, in no time."""
    found = doctor.examine(
        Machine(
            root,
            which=lambda name: f"/bin/{name}" if name in tools else None,
            has_package=lambda name: name != "jinja2",
            sleep=lambda _s: None,
            cuda_devices=lambda: devices,
        )
    )
    assert all(f.status == "ok" or f.reason for f in found)
    return {f"{f.group} {f.name}": f for f in found}


@pytest.fixture(autouse=True)
def _no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "STEAL_S", 0.0)
    monkeypatch.setattr("jepa_kernels.bench.energy.meters.PERIOD_LIMIT_S", 0.01)
    install(monkeypatch, FakeLibrary(init_code=12))


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text + "\n")


def test_monitor_that_holds_the_counters_is_named(tmp_path: Path) -> None:
    write(tmp_path, "proc/17/comm", "nv-hostengine")
    write(tmp_path, "proc/18/comm", "python")
    found = look(tmp_path)["profiling monitors"]
    assert (found.status, found.value) == ("limited", "nv-hostengine") and "nvidia-dcgm" in str(found.fix)


def test_empty_machine_lacks_everything_but_time(tmp_path: Path) -> None:
    found = look(tmp_path)
    missing = {name for name, f in found.items() if f.status == "missing"}
    assert missing == {
        "energy CPU packages",
        "energy DRAM",
        "energy GPU boards",
        "gpu CUDA",
        "profiling CPU counters",
        "profiling ncu",
        "profiling nsys",
        "profiling compute-sanitizer",
        "packages jinja2",
    }
    assert "utility" in str(found["energy GPU boards"].fix) and "bench" in str(found["packages jinja2"].fix)


@pytest.mark.parametrize(
    ("path", "good", "bad", "name", "fix"),
    [
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance", "powersave", "governor", "cpupower"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc", "hpet", "clock source", "tsc"),
        ("proc/loadavg", "0.01 0 0 1/2 3", "64.0 0 0 1/2 3", "load", "measure later"),
        ("sys/fs/cgroup/cpu.max", "max 100000", "50000 100000", "processors", "OMP_NUM_THREADS=1"),
    ],
)
def test_state_of_the_processors(tmp_path: Path, path: str, good: str, bad: str, name: str, fix: str) -> None:
    write(tmp_path, path, good)
    expected = "ok" if name != "processors" or torch.get_num_threads() <= doctor.hardware.available_cpus() else "limited"
    assert look(tmp_path)[f"time {name}"].status == expected
    write(tmp_path, path, bad)
    found = look(tmp_path)[f"time {name}"]
    assert found.status == "limited" and fix in str(found.fix)


def test_steal_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_proc(tmp_path, 0)
    steals = iter([10])

    def pass_time(_seconds: float) -> None:
        (tmp_path / "proc/stat").write_text(f"cpu 490 0 100 500 0 0 0 {next(steals)} 0 0\n")

    found = doctor._steal(Machine(tmp_path, sleep=pass_time))
    assert (found.status, found.value) == ("limited", "10.0%")


def test_rapl_that_stands_still_or_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path / "sys/class/powercap", "intel-rapl:0", "package-0", 5)
    assert look(tmp_path)["energy CPU packages"].reason == "its counter stands still"
    read = Path.read_text

    def denied(self: Path, *arguments: object, **options: object) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", denied)
    found = look(tmp_path)["energy CPU packages"]
    assert found.status == "missing" and "sudo chmod a+r" in str(found.fix)


@pytest.mark.parametrize(("paranoid", "status"), [("2", "ok"), ("4", "missing")])
def test_cpu_counters(tmp_path: Path, paranoid: str, status: str) -> None:
    write(tmp_path, "proc/sys/kernel/perf_event_paranoid", paranoid)
    (tmp_path / "sys/bus/event_source/devices/cpu").mkdir(parents=True)
    found = look(tmp_path)["profiling CPU counters"]
    assert found.status == status and (status == "ok" or "sysctl" in str(found.fix))


@pytest.mark.parametrize(("value", "status"), [("0", "ok"), ("1", "missing")])
def test_gpu_counters(tmp_path: Path, value: str, status: str) -> None:
    write(tmp_path, "proc/driver/nvidia/params", f"RmProfilingAdminOnly: {value}")
    assert look(tmp_path, tools=("ncu",))["profiling GPU counters"].status == status


def test_boards_and_what_cuda_makes_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = FakeBoard(VirtualTime(), events=0x40)
    install(monkeypatch, FakeLibrary(board))
    unused = look(tmp_path)
    assert unused["gpu CUDA"].status == "missing" and "1 boards, no CUDA device" in str(unused["gpu CUDA"].value)
    assert "hardware thermal slowdown" in str(unused["gpu board 0"].reason)
    board.events = 0
    found = look(tmp_path, devices=("GPU-other", UUID.removeprefix("GPU-")))
    assert found["gpu board 0"].status == "ok" and "cuda:1" in str(found["gpu board 0"].value)
    assert found["energy board 0"].reason == "its counter stands still"  # the virtual clock does not run here
    board.pids = (7, 8)
    assert "2 processes use it" in str(look(tmp_path)["gpu board 0"].reason)


@pytest.mark.parametrize(("required", "code"), [((), 0), (("energy",), 5), (("gpu",), 5)])
def test_exit_code_is_that_of_the_requirement(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, required: tuple[str, ...], code: int
) -> None:
    machine = Machine(tmp_path, sleep=lambda _s: None, cuda_devices=lambda: ())
    assert doctor.run(required, as_json=True, machine=machine) == code
    found = json.loads(capsys.readouterr().out)
    assert found["can_measure"] == {"energy": False, "gpu": False, "time": True}


def test_text_has_a_fix_below_each_lack(tmp_path: Path) -> None:
    text = doctor.as_text(list(look(tmp_path).values()))
    assert "missing GPU boards" in text and "fix: install the NVIDIA driver" in text
    assert text.index("time:") < text.index("energy:") < text.index("gpu:") < text.index("profiling:")


def test_command_exists_at_both_places(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda machine: [Finding("time", "load", "ok", "0")])
    assert cli.main(["doctor", "--json"]) == cli.main(["bench", "doctor", "--json"]) == 0
    assert cli.main(["doctor", "--require", "energy"]) == 5
    assert cli.main(["doctor", "--require", "luck"]) == 2
