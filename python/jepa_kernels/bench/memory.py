"""Peak memory of one call: the allocator's own count on a GPU, torch.profiler's allocation events on a CPU; and a bound that
makes what does not fit an error instead of the end of the process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Memory:
    """Bytes that a call adds at its highest point to what was held before it; None with a reason where unknown."""

    peak_bytes: int | None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def peak_memory(call: Callable[[], Any], device: torch.device) -> Memory:
    """Run the call once, apart from every timing, and tell the peak of its tensor memory."""
    try:
        return Memory(_on_gpu(call, device) if device.type == "cuda" else _on_cpu(call))
    except Exception as error:  # an extra: its failure is told, and the times stand
        return Memory(None, f"{type(error).__name__}: {error}")


def _on_gpu(call: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(call: Callable[[], Any]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes two lines a call to the terminal
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
        del result
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return highest(change for _, change in changes)


def highest(changes: Iterable[int]) -> int:
    """The highest point of a running sum that starts at zero."""
    held = peak = 0
    for change in changes:
        held += change
        peak = max(peak, held)
    return peak


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's allocator on a CPU raises a RuntimeError of no class of its own."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Lets the process take, inside, nine tenths of the memory that is free now: an allocation beyond raises an error.

    Linux would grant it and end the process once the pages are written, with all that was measured since the last record. Where
    /proc does not tell, or a limit is set already, nothing changes.
    """
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        held = _kibibytes("/proc/self/status", "VmData")
        limit = held + _kibibytes("/proc/meminfo", "MemAvailable") * 9 // 10
    except (ImportError, OSError, LookupError):  # not Linux
        yield
        return
    if soft != resource.RLIM_INFINITY:
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _kibibytes(path: str, name: str) -> int:
    """The value of a line `name: N kB`, in bytes."""
    lines = dict(line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024
