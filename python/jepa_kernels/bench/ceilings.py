"""What this machine reaches in the same run: copy bandwidth and matrix-product rates, the roofs of the plot."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .clocks import Clock, clock_for
from .timing import Timed, TimingOptions, warm_up

MIN_COPY_BYTES = 256 << 20
MAX_MEMORY_SHARE = 8  # the two copy buffers together take at most 1/4 of the memory
SAMPLES = 7


@dataclass(frozen=True)
class Ceilings:
    """Measured roofs. A rate is the fastest of a few samples: what can be reached, not what is typical."""

    device: str
    copy_bytes_per_s: float
    copy_buffer_bytes: int
    last_level_cache_bytes: int | None
    fp32_flops_per_s: float
    bf16_flops_per_s: float
    matrix_size: int

    def matrix(self, dtype: str) -> float:
        """The matrix rate in FLOP/s that work in this dtype is held against."""
        return self.bf16_flops_per_s if dtype == "bf16" else self.fp32_flops_per_s

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Size of the largest CPU cache, or None where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for entry in root.glob("index*/size"):
        text = entry.read_text().strip()
        if text and text[-1] in units and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes, default=None)


def measure_ceilings(device: torch.device, *, quick: bool = False) -> Ceilings:
    """Copy bandwidth on at least 4x the last-level cache, and fp32 and bf16 `torch.mm` rates (TF32 off)."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        cache: int | None = int(properties.L2_cache_size)
        memory = int(properties.total_memory)
        name, size = properties.name, 8192
    else:
        cache = last_level_cache_bytes()
        memory = _host_memory_bytes()
        name, size = "cpu", 1024 if quick else 2048
    wanted = max(4 * (cache or 0), MIN_COPY_BYTES if device.type == "cpu" else 4 * MIN_COPY_BYTES)
    buffer_bytes = min(wanted, memory // MAX_MEMORY_SHARE)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return Ceilings(
            device=name,
            copy_bytes_per_s=_copy_rate(device, buffer_bytes),
            copy_buffer_bytes=buffer_bytes,
            last_level_cache_bytes=cache,
            fp32_flops_per_s=_matrix_rate(device, torch.float32, size),
            bf16_flops_per_s=_matrix_rate(device, torch.bfloat16, size),
            matrix_size=size,
        )
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _fastest(timed: Timed, clock: Clock) -> float:
    warm_up(timed, clock, TimingOptions(warmup_max_s=0.4, warmup_agreement=0.05))
    return min(timed.sample(clock) for _ in range(SAMPLES))


def _copy_rate(device: torch.device, buffer_bytes: int) -> float:
    source = torch.ones(buffer_bytes // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    seconds = _fastest(Timed("copy", lambda: target.copy_(source)), clock_for(device))
    return 2 * source.numel() * 4 / seconds  # read + write; a CPU's write-allocate reads are not counted


def _matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, size, generator=generator).to(device, dtype)
    b = torch.randn(size, size, generator=generator).to(device, dtype)
    out = torch.empty_like(a)
    seconds = _fastest(Timed("mm", lambda: torch.mm(a, b, out=out)), clock_for(device))
    return 2 * size**3 / seconds
