"""Runs one provider of one case under torch.profiler. A process of its own: one profiler at a time, and never while timing."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from . import breakdown
from .cases import Case, Provider, Setting
from .devices import choose_device
from .store import to_json, write_atomic
from .suite import Suite
from .video import load_clip

WARM_UP = 2


def find(request: dict[str, Any], device: torch.device) -> tuple[Case, Provider]:
    """The case and provider that the request names; the parent has checked that they exist."""
    cases = Suite(name="profile", own=request["own"], cases=(request["case"],)).chosen()
    provider = next(p for p in cases[0].providers(device) if p.name == request["provider"])
    return cases[0], provider


def record(case: Case, provider: Provider, setting: Setting, calls: int, folder: Path) -> dict[str, Any]:
    """Profile the calls, write the trace, and return the profile."""
    device = setting.device
    inputs = case.make_inputs(setting)
    reason = provider.supports(inputs)
    if reason is not None:
        return {"error": f"{provider.name} cannot run here: {reason}"}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with provider.context():
        state = provider.setup(inputs)
        for _ in range(WARM_UP):
            provider.run(state)
        synchronise()
        begin = time.perf_counter()
        with profile(activities=activities, acc_events=True) as recorded:
            for _ in range(calls):
                with record_function(breakdown.CALL):
                    provider.run(state)
            synchronise()
            wall_s = (time.perf_counter() - begin) / calls
    trace = _export(recorded, folder)
    events: Any = [e for e in recorded.events() or [] if e.device_type == torch.autograd.DeviceType.CPU]
    on_device = device.type == "cuda"
    seconds = breakdown.parts(events, wall_s, calls, device=on_device)
    rows = breakdown.operators(events, calls, device=on_device)
    return {
        "case_id": case.id,
        "provider": provider.name,
        "device": str(device),
        "calls": calls,
        "wall_s": wall_s,
        "parts": seconds,
        "kinds": breakdown.kinds(events, wall_s, calls, device=on_device),
        "operators": [row.as_dict() for row in rows],
        "advice": breakdown.advise(seconds, rows),
        "trace": trace.name,
        "tools": {},
    }


def _export(recorded: profile, folder: Path) -> Path:
    """The Chrome trace, compressed: viewers read gzip, and a step's trace is tens of megabytes of text."""
    plain, packed = folder / "trace.json", folder / "trace.json.gz"
    recorded.export_chrome_trace(str(plain))
    with open(plain, "rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target)
    plain.unlink()
    return packed


def run_plain(path: Path) -> None:
    """The calls of a request alone, for a profiler from outside: warm-up first, then an NVTX range with the case's name."""
    request = json.loads(path.read_text(encoding="utf-8"))
    case, provider, setting = _chosen(request)
    inputs = case.make_inputs(setting)
    with provider.context():
        state = provider.setup(inputs)
        for _ in range(WARM_UP):
            provider.run(state)
        with torch.cuda.nvtx.range(case.id) if setting.device.type == "cuda" else nullcontext():
            for _ in range(request["calls"]):
                provider.run(state)
        if setting.device.type == "cuda":
            torch.cuda.synchronize()


def _chosen(request: dict[str, Any]) -> tuple[Case, Provider, Setting]:
    device = choose_device(request["device"])
    clip = load_clip(Path(request["input"]) if request["input"] else None)
    return *find(request, device), Setting(request["seed"], device, lambda: clip)


def main(path: Path) -> int:
    """Serve the request in a JSON file; `profile.json` beside it is the answer."""
    request = json.loads(path.read_text(encoding="utf-8"))
    case, provider, setting = _chosen(request)
    found = record(case, provider, setting, request["calls"], path.parent)
    write_atomic(path.with_name("profile.json"), to_json(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
