"""Proton and ncu over the calls of a profiled case, each in a process of its own: CUPTI serves one profiler at a time."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TOOLS = ("proton", "ncu")
LIMIT_S = 180.0
LAUNCHES = 200  # that ncu looks at: it replays each a dozen times
CLOSED = "ERR_NVGPUCTRPERM"
CLOSED_FIX = "counters are closed to users: run it with sudo, or load the driver with NVreg_RestrictProfilingToAdminUsers=0"
# A file, because Proton runs a file. The calls alone, without torch.profiler around them.
SCRIPT = "from pathlib import Path\n\nfrom jepa_kernels.bench.profile_worker import run_plain\n\nrun_plain(Path({request!r}))\n"


def run(request: Path, device: str) -> dict[str, str]:
    """For each tool what it wrote beside the request, or why it did not."""
    if not device.startswith("cuda"):
        return dict.fromkeys(TOOLS, f"needs a GPU, the case ran on {device}")
    script = request.with_name("calls.py")
    script.write_text(SCRIPT.format(request=str(request.resolve())), encoding="utf-8")
    return {"proton": _proton(script), "ncu": _ncu(script)}


def _proton(script: Path) -> str:
    if importlib.util.find_spec("triton") is None or importlib.util.find_spec("triton.profiler") is None:
        return "triton with its profiler is not installed"
    name = script.with_name("proton")
    command = (sys.executable, "-m", "triton.profiler.proton", "-n", str(name), str(script))
    failed = _failed("proton", command, script.parent)
    return failed or f"{name}.hatchet: kernels by what called them; read it with `proton-viewer -m time/ms {name}.hatchet`"


def _ncu(script: Path) -> str:
    tool = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    if tool is None:
        return "ncu is not on PATH (it comes with the CUDA toolkit)"
    report = script.with_name("ncu")
    limits = ("--set", "basic", "--nvtx", "--launch-count", str(LAUNCHES), "--force-overwrite", "-o", str(report))
    failed = _failed("ncu", (tool, *limits, sys.executable, str(script)), script.parent)
    return failed or f"{report}.ncu-rep: counters of the first {LAUNCHES} kernels; read it with `ncu-ui` or `ncu --import`"


def _failed(name: str, command: Sequence[str], folder: Path) -> str | None:
    """Run a tool; None, or why it gave nothing, with the command."""
    log, again = folder / f"{name}.log", f"; the command: {shlex.join(command)}"
    with open(log, "w", encoding="utf-8") as file:
        try:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=LIMIT_S).returncode
        except subprocess.TimeoutExpired:
            return f"stopped after {LIMIT_S:.0f} s, see {log}{again}"
    if CLOSED in log.read_text(encoding="utf-8", errors="replace"):
        return f"{CLOSED_FIX} ({CLOSED}){again}"
    return f"ended with code {code}, see {log}{again}" if code else None
