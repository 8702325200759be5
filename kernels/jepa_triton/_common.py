"""What several Triton kernels share: dtypes by torch name, and the form of an ahead-of-time compile case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton.language as tl

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


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
