"""Rotation of queries or keys by cos/sin tables, written once, so that attention loops read plain tiles.

Rotating keys inside the attention loop would read 8 D bytes of float32 tables beside the 4 D bytes of 16-bit keys
and values for each key, in each query tile: three times the traffic, ceil(Nq / BLOCK_M) times over (16 times at
N = 2048). This pass reads each table row once for HEADS_PER_PROGRAM heads and moves 4 D + 8 D / HEADS_PER_PROGRAM
bytes a key and head, once.
"""

import torch
import triton
import triton.language as tl

from .launch import MAX_STRIDE_UNIT, Launch, stride_arguments, stride_unit
from .segments import MIN_SEGMENT, head_dim_segments, load_segments, rotate_segments, store_segments

HEADS_PER_PROGRAM = 4
NUM_WARPS = 4
CHANNELS_PER_THREAD = 8  # of x, and as many of both tables; with 16, sm_100 code spills at head dim 128


RUNTIME_INTEGERS = [
    "num_tokens", "num_heads", "num_tiles", "num_head_groups",
    *(f"{name}_stride_{axis}" for name in ("x", "out") for axis in "bhn"),
    *(f"{name}_stride_{axis}" for name in ("cos", "sin") for axis in "bn"),
]  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def rotate_kernel(
    x_ptr, out_ptr, cos_ptr, sin_ptr,
    x_stride_b: tl.int64, x_stride_h: tl.int64, x_stride_n: tl.int64,
    out_stride_b: tl.int64, out_stride_h: tl.int64, out_stride_n: tl.int64,
    cos_stride_b: tl.int64, cos_stride_n: tl.int64, sin_stride_b: tl.int64, sin_stride_n: tl.int64,
    num_tokens, num_heads, num_tiles, num_head_groups,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, STRIDE_UNIT: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, HEADS_PER_PROGRAM: tl.constexpr,
):  # fmt: skip
    """out[b, h, n, c] = x[b, h, n, c] cos[b, n, c] + x[b, h, n, c^1] sin[b, n, c] for one tile of tokens and some heads."""
    pid = tl.program_id(0)
    first = (pid % num_tiles) * BLOCK_TOKENS
    group = (pid // num_tiles) % num_head_groups
    batch = pid // (num_tiles * num_head_groups)
    left = num_tokens - first
    cos_row = cos_stride_n * STRIDE_UNIT
    sin_row = sin_stride_n * STRIDE_UNIT
    x_row = x_stride_n * STRIDE_UNIT
    out_row = out_stride_n * STRIDE_UNIT
    cos_base = cos_ptr + batch * cos_stride_b * STRIDE_UNIT + first * cos_row
    sin_base = sin_ptr + batch * sin_stride_b * STRIDE_UNIT + first * sin_row
    cos = load_segments(cos_base, cos_row, left, BLOCK_TOKENS, HEAD_DIM, SEGMENTS)  # [BLOCK_TOKENS, D]
    sin = load_segments(sin_base, sin_row, left, BLOCK_TOKENS, HEAD_DIM, SEGMENTS)  # [BLOCK_TOKENS, D]
    x_base = x_ptr + batch * x_stride_b * STRIDE_UNIT + first * x_row
    out_base = out_ptr + batch * out_stride_b * STRIDE_UNIT + first * out_row
    first_head = group * HEADS_PER_PROGRAM
    for head in range(first_head, tl.minimum(first_head + HEADS_PER_PROGRAM, num_heads)):
        x = load_segments(x_base + head * x_stride_h * STRIDE_UNIT, x_row, left, BLOCK_TOKENS, HEAD_DIM, SEGMENTS)
        y = rotate_segments(x, cos, sin)  # [BLOCK_TOKENS, D]
        store_segments(out_base + head * out_stride_h * STRIDE_UNIT, out_row, left, y, HEAD_DIM, SEGMENTS)


def rotation(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, Launch]:
    """Workspace (B, H, N, D) and the launch that fills it with x (B, H, N, D) rotated by tables (1 or B, N, D)."""
    batch, heads, tokens, head_dim = x.shape
    row = -(-head_dim // MAX_STRIDE_UNIT) * MAX_STRIDE_UNIT  # rows padded so that each starts aligned
    rotated = torch.empty((batch, heads, tokens, row), dtype=x.dtype, device=x.device)[..., :head_dim]
    unit = stride_unit(x, rotated, cos, sin)
    block_tokens = NUM_WARPS * 32 * CHANNELS_PER_THREAD // triton.next_power_of_2(max(head_dim, MIN_SEGMENT))
    tiles, groups = triton.cdiv(tokens, block_tokens), triton.cdiv(heads, HEADS_PER_PROGRAM)
    arguments = {
        "x_ptr": x, "out_ptr": rotated, "cos_ptr": cos, "sin_ptr": sin,
        **stride_arguments("x", x, "bhn", unit), **stride_arguments("out", rotated, "bhn", unit),
        **stride_arguments("cos", cos, "bn", unit), **stride_arguments("sin", sin, "bn", unit),
        "num_tokens": tokens, "num_heads": heads, "num_tiles": tiles, "num_head_groups": groups,
        "HEAD_DIM": head_dim, "SEGMENTS": head_dim_segments(head_dim), "STRIDE_UNIT": unit,
        "BLOCK_TOKENS": block_tokens, "HEADS_PER_PROGRAM": HEADS_PER_PROGRAM,
    }  # fmt: skip
    return rotated, Launch(rotate_kernel, tiles * groups * batch, arguments, {"num_warps": NUM_WARPS, "num_stages": 1})
