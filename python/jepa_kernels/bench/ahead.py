"""Every case called once before anything is timed, in processes side by side: compilers then find their caches full.

A suite of many kernels and compiled peers would otherwise spend its time budget on one compilation after another, on one core.
What fails here fails again where it is measured, and is told there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import hardware
from . import runner
from .cases import Case, Setting
from .devices import choose_device
from .store import to_json, write_atomic
from .suite import Suite, from_record
from .video import load_clip

MOST_PROCESSES = 12
MEMORY_A_PROCESS = 10 << 30  # bytes of the device; a context and the largest case


def run(cases: Sequence[Case], suite: Suite, device: torch.device, video: Path | None, limit_s: float) -> dict[str, Any]:
    """Call every provider of every case once, within `limit_s`; the number of processes, the seconds, and how many ended.

    Process i takes the cases i, i + n, ... of n, so that those that come first are ready first.
    """
    count = max(min(len(cases), processes(device)), 1)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jepa-kernels-ahead-") as folder:
        shares = [[case.id for case in cases[index::count]] for index in range(count)]
        running = [_begin(Path(folder) / f"{index}.json", share, suite, device, video) for index, share in enumerate(shares)]
        try:
            for process in running:
                try:
                    process.wait(max(begin + limit_s - time.monotonic(), 0.0))
                except subprocess.TimeoutExpired:
                    break
            ended = sum(process.poll() is not None for process in running)
        finally:
            for process in running:
                process.kill()
                process.wait()
    return {"processes": count, "ended": ended, "seconds": time.monotonic() - begin}


def processes(device: torch.device) -> int:
    """Processes that the processors, but one for this program, and the device's memory have room for."""
    count = min(hardware.available_cpus() - 1, MOST_PROCESSES)
    if device.type == "cuda":
        count = min(count, torch.cuda.get_device_properties(device).total_memory // MEMORY_A_PROCESS)
    return max(int(count), 1)


def _begin(request: Path, share: list[str], suite: Suite, device: torch.device, video: Path | None) -> Any:
    wanted = {"cases": share, "suite": asdict(suite), "device": str(device), "video": str(video or "")}
    write_atomic(request, to_json(wanted))
    # One thread each: a compiler's own pool of processes would stand beside every one of these.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [sys.executable, "-m", "jepa_kernels.bench.ahead", str(request), "0"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def main(request: Path, first: int) -> int:
    """Call the cases of a request, from the `first` on."""
    wanted = json.loads(request.read_text(encoding="utf-8"))
    suite, device = from_record(wanted["suite"], request), choose_device(wanted["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    clip = load_clip(Path(wanted["video"]) if wanted["video"] else None)
    setting = Setting(suite.seed, device, lambda: clip)
    known = {case.id: case for case in runner.chosen_cases(suite, device)}
    parent = os.getppid()
    for place, name in enumerate(wanted["cases"][first:], first):
        for provider in runner.select_providers(known[name], device, suite.providers):
            if os.getppid() != parent:  # a killed parent asks for nothing more
                return 0
            if not _call(known[name], provider, setting):
                os.execv(sys.executable, [sys.executable, "-m", "jepa_kernels.bench.ahead", str(request), str(place + 1)])
        runner.release(device)
    return 0


def _call(case: Case, provider: Any, setting: Setting) -> bool:
    """Set a provider up and run it once; whether the device still works."""
    try:
        inputs = case.make_inputs(setting)
        if provider.supports(inputs) is None:
            with provider.context():
                provider.run(provider.setup(inputs))
    except Exception:  # told where it is measured
        pass
    try:
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
