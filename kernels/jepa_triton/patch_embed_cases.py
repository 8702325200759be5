"""The compile cases of patch embedding: every kernel with the tiles of its launcher, for what training uses."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from ._common import TRITON_DTYPES, AotCase
from .patch_embed import (
    REDUCE_BLOCK,
    SPLIT_ROWS,
    backward_pixels_kernel,
    backward_weight_kernel,
    forward_kernel,
    forward_tiles,
    pixel_tiles,
    reduce_kernel,
    sum_rows_kernel,
    weight_tiles,
)


def type_name(dtype: torch.dtype) -> str:
    """The pointer type in a signature."""
    return {torch.uint8: "*u8", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[dtype]


def aot_cases(quick: bool = False) -> list[AotCase]:
    """Cases of the compile gate: pixel and compute dtypes, K a multiple of 16 and not, both orders in memory."""
    shapes = {"tubelet": (3 * 2 * 16 * 16, 2, 16, 16), "p14": (3 * 14 * 14, 1, 14, 14)}
    cases = _reduction_cases(torch.bfloat16) + ([] if quick else _reduction_cases(torch.float32))
    for shape, pixels, compute, decoder in (
        ("tubelet", torch.uint8, torch.bfloat16, False),
        ("tubelet", torch.uint8, torch.bfloat16, True),
        ("p14", torch.float32, torch.bfloat16, False),
        ("tubelet", torch.float32, torch.float16, False),
        ("p14", torch.float32, torch.float32, False),
    )[: 1 if quick else None]:
        cases += _cases_of(shape, shapes[shape], pixels, compute, decoder)
    return cases


def _cases_of(
    name: str, shape: tuple[int, int, int, int], pixels: torch.dtype, compute: torch.dtype, decoder: bool
) -> list[AotCase]:
    value = type_name(compute)
    strides = dict.fromkeys(("stride_b", "stride_c", "stride_t", "stride_h"), "i32") | (
        {"stride_w": "i32"} if decoder else {}
    )
    sizes = {"patches": "i32", "tokens": "i32", "width": "i32", "grid_h": "i32", "grid_w": "i32"} | strides
    fixed: dict[str, Any] = dict(zip(("K", "PT", "PH", "PW"), shape, strict=True)) | (
        {} if decoder else {"stride_w": 1}
    )
    moments = {"MEAN": True, "STD": True}
    code = TRITON_DTYPES[compute]
    label = f"{name}-{pixels}-{compute}{'-decoder' * decoder}".replace("torch.", "")
    aligned = ("width", "stride_b", "stride_t", "stride_h") + (() if decoder else ("stride_c",))

    def case(
        kernel: Any, pointers: dict[str, str], sizes: dict[str, str], constants: dict[str, Any], tiles: dict[str, int]
    ) -> AotCase:
        launch = {key: tiles[key] for key in ("num_warps", "num_stages")}
        blocks = {key: value for key, value in tiles.items() if key not in launch}
        stem, tile = kernel.__name__.removesuffix("_kernel"), f"{blocks['BR']}x{blocks['BD']}x{blocks['BK']}"
        return AotCase(
            name=f"patch_embed-{stem}-{label}-{tile}",
            kernel=kernel,
            signature=pointers | sizes,
            constants=constants | blocks,
            divisible_by_16=(*pointers, *(key for key in aligned if key in sizes)),
            expects_mma=compute != torch.float32 and "BK" in blocks,
            **launch,
        )

    inputs = {"pixels": type_name(pixels), "weight": value, "bias": value, "rows": "*i64", "pos_embed": "*fp32"}
    statistics = {"mean": "*fp32", "std": "*fp32"}
    rows = {"num_rows": "i32"} | sizes
    flags = fixed | moments | {"ROWS": True, "COMPUTE": code}
    gathered = {"grad": value, "pixels": type_name(pixels), "rows": "*i64"} | statistics | {"partial": "*fp32"}
    forward_flags = flags | {"BIAS": True, "POSITIONS": True, "OUT": tl.float32}
    cases = [
        case(
            forward_kernel,
            inputs | statistics | {"out": "*fp32"},
            rows,
            forward_flags,
            forward_tiles(compute, count, pixels.itemsize, not decoder),
        )
        for count in ((4096,) if decoder or compute == torch.float32 else (512, 4096))
    ]
    cases.append(
        case(
            backward_weight_kernel,
            gathered,
            rows,
            flags | {"SPLIT": SPLIT_ROWS},
            weight_tiles(compute, pixels.itemsize, not decoder),
        )
    )
    if pixels != torch.uint8:
        written = {"grad": value, "weight": value, "std": "*fp32", "grad_pixels": type_name(pixels)}
        constants = fixed | {"STD": True, "PIXEL": TRITON_DTYPES[pixels]}
        cases.append(case(backward_pixels_kernel, written, sizes, constants, pixel_tiles(compute)))
    return cases


def _reduction_cases(compute: torch.dtype) -> list[AotCase]:
    value = type_name(compute)
    partial = {"partial": "*fp32", "out": value, "numel": "i32", "splits": "i32"}
    values = {"values": value, "order": "*i64", "starts": "*i64", "out": "*fp32", "width": "i32"}
    return [
        AotCase(
            f"patch_embed-reduce-{value[1:]}",
            reduce_kernel,
            partial,
            {"BLOCK": REDUCE_BLOCK},
            divisible_by_16=("partial", "out", "numel"),
        ),
        AotCase(
            f"patch_embed-sum_rows-{value[1:]}",
            sum_rows_kernel,
            values,
            {"BD": 1024},
            divisible_by_16=("values", "out", "width"),
        ),
    ]
