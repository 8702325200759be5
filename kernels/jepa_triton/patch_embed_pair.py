"""Target and context patch embedding in one launch: tiles of both products, interleaved so that they meet the same pixels.

The tiles of the context stand among those of the target in proportion to their number. With one mask, the kept patches of a clip
follow the clip's tiles of the target, and find their pixels in the L2 cache; with several masks, which follow each other over the
batch, they do as far as that cache holds the batch. Pixels in decoder order, or wider than a byte, take two launches, one after
the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import TRITON_DTYPES
from .patch_embed import embed_tile, forward_tiles, geometry
from .patch_embed import forward as embed


@triton.jit(do_not_specialize=["kept_rows", "programs", "kept_programs", "patches"])
def pair_kernel(
    pixels, weight, bias, pos_embed, out, kept_weight, kept_bias, kept_pos_embed, rows, kept_out, mean, std,
    kept_rows, programs, kept_programs, patches, tokens, width, kept_width,
    grid_h, grid_w, stride_b, stride_c, stride_t, stride_h, stride_w,
    K: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    BIAS: tl.constexpr, KEPT_BIAS: tl.constexpr, POSITIONS: tl.constexpr, KEPT_POSITIONS: tl.constexpr,
    MEAN: tl.constexpr, STD: tl.constexpr, COMPUTE: tl.constexpr, OUT: tl.constexpr, KEPT_OUT: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[i] = normalised(patch i) @ weight^T + ..., kept_out[i] = normalised(patch rows[i]) @ kept_weight^T + ..."""
    program = tl.program_id(0).to(tl.int64)
    before = program * kept_programs // programs  # tiles of the context in programs before this one
    if (program + 1) * kept_programs // programs > before:
        embed_tile(
            before.to(tl.int32), pixels, kept_weight, kept_bias, rows, kept_pos_embed, mean, std, kept_out,
            kept_rows, patches, tokens, kept_width, grid_h, grid_w, stride_b, stride_c, stride_t, stride_h, stride_w,
            K, PT, PH, PW, True, KEPT_BIAS, KEPT_POSITIONS, MEAN, STD, COMPUTE, KEPT_OUT, BR, BD, BK,
        )  # fmt: skip
    else:
        embed_tile(
            (program - before).to(tl.int32), pixels, weight, bias, rows, pos_embed, mean, std, out,
            patches, patches, tokens, width, grid_h, grid_w, stride_b, stride_c, stride_t, stride_h, stride_w,
            K, PT, PH, PW, False, BIAS, POSITIONS, MEAN, STD, COMPUTE, OUT, BR, BD, BK,
        )  # fmt: skip


def forward(
    pixels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    pos_embed: torch.Tensor | None,
    out: torch.Tensor,
    kept_weight: torch.Tensor,
    kept_bias: torch.Tensor | None,
    kept_pos_embed: torch.Tensor | None,
    rows: torch.Tensor,
    kept_out: torch.Tensor,
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
) -> None:
    """Writes the tokens of all patches to `out` (B * N, D) and those of `rows` to `kept_out` (R, D'). Weights: contiguous."""
    if pixels.stride(4) != 1 or pixels.element_size() > 1:
        # Wide pixels, or an address for each, leave no registers for two bodies in one kernel (it spills on sm_80 and sm_86).
        embed(pixels, weight, bias, None, pos_embed, mean, std, out)
        embed(pixels, kept_weight, kept_bias, rows, kept_pos_embed, mean, std, kept_out)
        return
    (patches, tokens, *rest), constants = geometry(pixels, weight.shape[2:])
    tiles = forward_tiles(weight.dtype, patches, pixels.element_size(), True)

    def count(result: torch.Tensor) -> int:
        return triton.cdiv(result.shape[0], tiles["BR"]) * triton.cdiv(result.shape[1], tiles["BD"])

    kept_programs, programs = count(kept_out), count(out) + count(kept_out)
    if programs == 0:
        return
    pair_kernel[(programs,)](
        pixels, weight, bias, pos_embed, out, kept_weight, kept_bias, kept_pos_embed, rows, kept_out, mean, std,
        rows.shape[0], programs, kept_programs, patches, tokens, out.shape[1], kept_out.shape[1], *rest, **constants,
        BIAS=bias is not None, KEPT_BIAS=kept_bias is not None, POSITIONS=pos_embed is not None,
        KEPT_POSITIONS=kept_pos_embed is not None, MEAN=mean is not None, STD=std is not None,
        COMPUTE=TRITON_DTYPES[weight.dtype], OUT=TRITON_DTYPES[out.dtype], KEPT_OUT=TRITON_DTYPES[kept_out.dtype], **tiles,
    )  # fmt: skip
