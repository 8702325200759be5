"""The compile cases of target and context patch embedding, for what training uses."""

from __future__ import annotations

import torch
import triton.language as tl

from ._common import TRITON_DTYPES, AotCase
from .patch_embed import forward_tiles
from .patch_embed_cases import type_name
from .patch_embed_pair import pair_kernel


def aot_cases(quick: bool = False) -> list[AotCase]:
    """uint8 and float32 clips, and images whose K is not a multiple of 16."""
    tubelet, p14 = (3 * 2 * 16 * 16, 2, 16, 16), (3 * 14 * 14, 1, 14, 14)
    cases = [
        _case("tubelet", tubelet, torch.uint8, torch.bfloat16),
        _case("tubelet", tubelet, torch.float32, torch.float16),
        _case("p14", p14, torch.float32, torch.float32),
    ]
    return cases[: 1 if quick else None]


def _case(
    name: str, shape: tuple[int, int, int, int], pixels: torch.dtype, compute: torch.dtype
) -> AotCase:
    tiles = forward_tiles(compute, 4096, pixels.itemsize, True)
    value = type_name(compute)
    own = {"weight": value, "bias": value, "pos_embed": "*fp32", "out": "*fp32"}
    kept = {"kept_weight": value, "kept_bias": value, "kept_pos_embed": "*fp32", "rows": "*i64", "kept_out": "*fp32"}
    pointers = {"pixels": type_name(pixels)} | own | kept | {"mean": "*fp32", "std": "*fp32"}
    counts = ("kept_rows", "programs", "kept_programs", "patches", "tokens", "width", "kept_width", "grid_h", "grid_w")
    strides = ("stride_b", "stride_c", "stride_t", "stride_h")
    flags = dict.fromkeys(("BIAS", "KEPT_BIAS", "POSITIONS", "KEPT_POSITIONS", "MEAN", "STD"), True)
    fixed = dict(zip(("K", "PT", "PH", "PW"), shape, strict=True)) | {"stride_w": 1}
    types = {"COMPUTE": TRITON_DTYPES[compute], "OUT": tl.float32, "KEPT_OUT": tl.float32}
    launch = {key: tiles[key] for key in ("num_warps", "num_stages")}
    blocks = {key: value for key, value in tiles.items() if key not in launch}
    aligned = ("width", "kept_width", "stride_b", "stride_t", "stride_h", "stride_c")
    return AotCase(
        name=f"patch_embed_pair-{name}-{pixels}-{compute}".replace("torch.", ""),
        kernel=pair_kernel,
        signature=pointers | dict.fromkeys((*counts, *strides), "i32"),
        constants=fixed | flags | types | blocks,
        divisible_by_16=(*pointers, *aligned),
        expects_mma=compute != torch.float32,
        **launch,
    )
