"""What several Triton kernels share: dtypes by torch name, linear interpolation, and the form of an ahead-of-time compile case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def lerp(old, new, weight):
    """torch.lerp in float32: its two branches keep the result exact at both ends."""
    difference = new - old
    near_old = tl.fma(difference, tl.zeros_like(old) + weight, old)
    near_new = tl.fma(difference, tl.zeros_like(old) + (weight - 1.0), new)
    return tl.where(weight < 0.5, near_old, near_new)


@dataclass(frozen=True)
class AotCase:
    """One kernel at one configuration, as the ahead-of-time compile gate builds it for every architecture.

    signature: argument name -> Triton type, such as "*bf16" or "i32"; constants: the constexpr arguments;
    expects_mma: the tile is meant to run on tensor cores, so that their instructions must be in the PTX;
    max_registers: bound of registers a thread, None to leave it to the assembler.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    divisible_by_16: tuple[str, ...] = field(default=())
    expects_mma: bool = False
    max_registers: int | None = None
