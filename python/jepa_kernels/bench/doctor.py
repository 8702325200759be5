"""`jepa-kernels doctor`: what can be measured on this machine, what cannot, why, and what mends it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import hardware
from . import energy
from .clocks import clock_for
from .energy import nvml, perf, rapl
from .energy.errors import Unavailable
from .energy.meters import Meter, NvmlCounter, open_cpu, update_period
from .energy.validate import validate
from .energy_run import probe_for
from .telemetry import CpuProbe, Timeline

OK, NOT_MET = 0, 5
GROUPS = ("time", "energy", "gpu", "profiling", "packages")
REQUIREMENTS = ("energy", "gpu")
STEAL_S = 0.5
GOOD_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")
PACKAGES = {"rich": "tables", "matplotlib": "plots", "jinja2": "reports", "scipy": "intervals", "pynvml": "GPU energy"}


MONITORS = ("nv-hostengine", "dcgm-exporter")  # of NVIDIA's DCGM


@dataclass(frozen=True)
class Finding:
    """One thing that measuring needs. `status` is ok, limited (usable, results suffer) or missing."""

    group: str
    name: str
    status: str
    value: str | None
    reason: str | None = None
    fix: str | None = None


@dataclass(frozen=True)
class Machine:
    """Where the doctor looks; tests put another machine here."""

    root: Path = Path("/")
    which: Callable[[str], str | None] = shutil.which
    has_package: Callable[[str], bool] = field(default=lambda name: importlib.util.find_spec(name) is not None)
    sleep: Callable[[float], object] = time.sleep
    cuda_devices: Callable[[], Sequence[str]] = field(default=lambda: _cuda_devices())

    def read(self, path: str) -> str | None:
        """Text of a file of the kernel, or None."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None


def _cuda_devices() -> list[str]:
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


def examine(machine: Machine | None = None) -> list[Finding]:
    """Every finding, in the order of the text. Takes a few seconds, in which the machine should be idle."""
    looked_at = machine or Machine()
    checks = (_time, _cpu_energy, _gpu, _profiling, _packages)
    found = [finding for check in checks for finding in check(looked_at)]
    return sorted(found, key=lambda finding: GROUPS.index(finding.group))


def _time(machine: Machine) -> Iterable[Finding]:
    yield _processors(machine)
    yield _load(machine)
    yield _steal(machine)
    governor = machine.read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor is None:
        yield Finding("time", "governor", "limited", None, "the clock is not visible here (as in most virtual machines)")
    elif governor == "performance":
        yield Finding("time", "governor", "ok", governor)
    else:
        fix = "sudo cpupower frequency-set -g performance"
        yield Finding("time", "governor", "limited", governor, "the clock follows the load", fix)
    source = machine.read("sys/devices/system/clocksource/clocksource0/current_clocksource")
    value = f"{source or 'unknown'}; perf_counter resolves {_resolution_ns()} ns"
    if source is None or source in GOOD_CLOCKS:
        yield Finding("time", "clock source", "ok", value)
    else:
        fix = "boot with clocksource=tsc"
        yield Finding("time", "clock source", "limited", value, f"reading {source} takes a microsecond or more", fix)


def _resolution_ns() -> int:
    """Smallest step between two readings in a row."""
    readings = [time.perf_counter_ns() for _ in range(1000)]
    return min((b - a for a, b in zip(readings, readings[1:], strict=False) if b > a), default=1)


def _processors(machine: Machine) -> Finding:
    cpus, threads = float(hardware.available_cpus()), torch.get_num_threads()
    quota = _quota(machine)
    usable = min(cpus, quota) if quota is not None else cpus
    value = f"{cpus:.0f} processors" + (f", {quota:g} by quota" if quota is not None else "") + f", {threads} torch threads"
    if threads <= usable:
        return Finding("time", "processors", "ok", value)
    fix = f"OMP_NUM_THREADS={max(int(usable), 1)} in the environment"
    return Finding("time", "processors", "limited", value, "more threads than processors wait for each other", fix)


def _quota(machine: Machine) -> float | None:
    """Processors that the control group allows, or None without a limit."""
    words = (machine.read("sys/fs/cgroup/cpu.max") or "").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _load(machine: Machine) -> Finding:
    text = machine.read("proc/loadavg")
    if text is None:
        return Finding("time", "load", "limited", None, "the load of the machine is not visible")
    load, cpus = float(text.split()[0]), hardware.available_cpus()
    value = f"{load:.2f} on {cpus} processors in the last minute"
    if load <= 0.25 * cpus:
        return Finding("time", "load", "ok", value)
    return Finding("time", "load", "limited", value, "something else is running", "end it, or measure later")


def _steal(machine: Machine) -> Finding:
    probe = CpuProbe(root=machine.root)
    machine.sleep(STEAL_S)
    steal = probe.row()["steal"]
    if steal is None:
        return Finding("time", "steal", "limited", None, "the time that a hypervisor takes is not visible")
    if steal <= 0.01:
        return Finding("time", "steal", "ok", f"{steal:.1%}")
    fix = "use a machine with processors of its own"
    return Finding("time", "steal", "limited", f"{steal:.1%}", "a hypervisor gives this processor to others", fix)


def _cpu_energy(machine: Machine) -> Iterable[Finding]:
    files, events = (machine.root / path.relative_to("/") for path in (rapl.ROOT, perf.ROOT))
    for name in perf.EVENTS:
        try:
            meter = open_cpu(name, files, events)
            yield _counter("energy", name, "RAPL", meter, machine)
        except Unavailable as error:
            yield Finding("energy", name, "missing", None, error.what, error.fix)


def _counter(group: str, name: str, label: str, meter: Meter, machine: Machine) -> Finding:
    period = update_period(meter, sleep=machine.sleep)
    if period.seconds is None:
        return Finding(group, name, "missing", label, "its counter stands still")
    return Finding(group, name, "ok", f"{label} counter of {meter.scope}, refreshed every {period.seconds * 1e3:.0f} ms")


def _gpu(machine: Machine) -> Iterable[Finding]:
    devices = machine.cuda_devices()
    try:
        boards = nvml.boards()
    except Unavailable as error:
        if not devices:
            yield Finding("gpu", "CUDA", "missing", None, "torch sees no GPU")
        yield Finding("energy", "GPU boards", "missing", None, error.what, error.fix)
        return
    if not devices and boards:
        why = "torch is built without CUDA" if torch.version.cuda is None else "CUDA does not start"
        fix = "pip install a CUDA build of torch" if torch.version.cuda is None else "check CUDA_VISIBLE_DEVICES"
        yield Finding("gpu", "CUDA", "missing", f"{len(boards)} boards, no CUDA device", why, fix)
    for index, board in enumerate(boards):
        yield from _board(index, board, devices, machine)


def _board(index: int, board: nvml.Board, devices: Sequence[str], machine: Machine) -> Iterable[Finding]:
    about = board.describe()
    name, bare = f"board {index}", str(about["uuid"]).removeprefix("GPU-")
    cuda = [i for i, uuid in enumerate(devices) if uuid.removeprefix("GPU-") == bare]
    limit = f", limit {about['power_limit_w']:.0f} W" if about["power_limit_w"] is not None else ""
    value = f"{about['name']}, driver {about['driver']}{limit}, {'cuda:' + str(cuda[0]) if cuda else 'not a CUDA device here'}"
    others = board.other_processes()
    slowed = [text for bit, text in nvml.EVENTS.items() if (board.snapshot()["events"] or 0) & bit]  # type: ignore[operator]
    if others:
        yield Finding("gpu", name, "limited", value, f"{others} processes use it", "end them, or choose another GPU")
    elif slowed:
        yield Finding("gpu", name, "limited", value, f"it is slowed down now: {', '.join(slowed)}", "let it cool")
    else:
        yield Finding("gpu", name, "ok" if cuda else "limited", value, None if cuda else "torch does not use it")
    try:
        counter = NvmlCounter(board)
    except Unavailable as error:
        yield _power_only(name, board, error)
        return
    yield _counter("energy", name, "NVML", counter, machine)


def _power_only(name: str, board: nvml.Board, why: Unavailable) -> Finding:
    """A board without an energy counter; its power can be integrated, unless it is split into instances."""
    if why.flag != "mig":
        try:
            value = f"{board.power_w():.0f} W now, to be integrated ({board.power_kind()}, {board.power_scope()})"
            return Finding("energy", name, "limited", value, f"no energy counter: {why.what}", why.fix)
        except Unavailable:
            pass  # neither: the reason of the counter is the one to tell
    return Finding("energy", name, "missing", None, why.what, why.fix)


def _text(path: Path) -> str:
    """A file of a process, which may have ended."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _profiling(machine: Machine) -> Iterable[Finding]:
    paranoid = machine.read("proc/sys/kernel/perf_event_paranoid")
    if paranoid is None or not (machine.root / "sys/bus/event_source/devices/cpu").exists():
        reason = "this kernel or virtual machine gives no hardware counters"
        yield Finding("profiling", "CPU counters", "missing", None, reason)
    elif int(paranoid) > 2:
        fix = "sudo sysctl kernel.perf_event_paranoid=2"
        yield Finding("profiling", "CPU counters", "missing", f"perf_event_paranoid {paranoid}", "root alone may read them", fix)
    else:
        yield Finding("profiling", "CPU counters", "ok", f"perf_event_paranoid {paranoid}")
    parameters = machine.read("proc/driver/nvidia/params")
    if parameters is not None:
        if "RmProfilingAdminOnly: 1" in parameters:
            fix = "sudo, or load the module with NVreg_RestrictProfilingToAdminUsers=0"
            yield Finding("profiling", "GPU counters", "missing", None, "root alone may read them (ERR_NVGPUCTRPERM)", fix)
        else:
            yield Finding("profiling", "GPU counters", "ok", "open to every user")
    monitors = sorted({name for path in machine.root.glob("proc/[0-9]*/comm") if (name := _text(path)) in MONITORS})
    if monitors:
        fix = "sudo systemctl stop nvidia-dcgm, for as long as you profile"
        yield Finding("profiling", "monitors", "limited", ", ".join(monitors), "its profiling keeps ncu from the counters", fix)
    for tool, use in (("ncu", "kernel counters"), ("nsys", "traces"), ("compute-sanitizer", "memory checks")):
        path = machine.which(tool) or machine.which(f"/usr/local/cuda/bin/{tool}")
        if path is not None:
            yield Finding("profiling", tool, "ok", path)
        else:
            fix = "install the CUDA toolkit and put its bin folder on PATH"
            yield Finding("profiling", tool, "missing", None, f"not found ({use})", fix)


def _packages(machine: Machine) -> Iterable[Finding]:
    for package, use in PACKAGES.items():
        if not machine.has_package(package):
            fix = "pip install 'jepa-kernels[bench]'"
            yield Finding("packages", package, "missing", None, f"not installed ({use})", fix)


def as_text(findings: Sequence[Finding]) -> str:
    """One line a finding, with its reason and its fix below."""
    lines, group = [], None
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines.append(f"{group}:")
        lines.append(f"  {finding.status:<8}{finding.name:<18}{finding.value or finding.reason or ''}".rstrip())
        if finding.reason is not None and finding.value is not None:
            lines.append(f"{'':<28}why: {finding.reason}")
        if finding.fix is not None:
            lines.append(f"{'':<28}fix: {finding.fix}")
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> dict[str, Any]:
    """What can be measured, by requirement, and all findings."""
    usable = {f.group for f in findings if f.status != "missing" and not f.name.startswith("check")}
    return {
        "schema": 1,
        "can_measure": {name: name in usable for name in REQUIREMENTS} | {"time": True},
        "findings": [asdict(finding) for finding in findings],
    }


def check_energy(device: torch.device) -> list[Finding]:
    """Findings of the checks of a device's meter under a load; about a minute, in which nothing else should run."""
    meters = energy.open_meters(device)
    energy.find_period(meters)
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(a)

    def product() -> object:
        return torch.mm(a, a, out=out)

    clock, probe = clock_for(device), probe_for(device, meters)
    product()
    seconds = clock.measure(product, 10) / 10
    try:
        if meters.main is None:
            raise Unavailable(meters.reason or "there is no meter")
        found = validate(meters, lambda: energy.load_for(device, product, seconds), Timeline(*probe))
    except Unavailable as error:
        return [Finding("energy", "check", "missing", None, error.what, error.fix)]
    statuses = {True: "ok", False: "limited", None: "missing"}
    reasons = {True: None, False: "the energy of this machine does not add up", None: "it could not be made"}
    return [Finding("energy", f"check: {v.name}", statuses[v.passed], v.found, reasons[v.passed]) for v in found]


def run(required: Sequence[str], *, as_json: bool, check: bool = False, machine: Machine | None = None) -> int:
    """Print the findings; 5 when something that is required cannot be measured, else 0."""
    findings = examine(machine)
    if check:
        checked = check_energy(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        findings = sorted([*findings, *checked], key=lambda finding: GROUPS.index(finding.group))
    found = summary(findings)
    print(json.dumps(found, indent=1) if as_json else as_text(findings))
    return OK if all(found["can_measure"][name] for name in required) else NOT_MET
