"""Patch embedding as implicit matrix products: pixels of kept patches are gathered by strides, normalised and multiplied at once.

Rows are indices into the B * N patches; those outside read nothing, yield NaN and receive no gradient. Columns of the product run
over (channel, frame, y, x) inside a patch, the order of a convolution's weight. Pixels are normalised where they are loaded, in
float32, and rounded once: two operations a pixel, against folding std into the weight, which would round the weight a second time
and rewrite it at every step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import TRITON_DTYPES

# Rows of one split of the weight gradient. Fixed, so that the order of its sums depends on the shapes alone.
SPLIT_ROWS = 4096
REDUCE_BLOCK = 1024
# Counts that change with the mask and the batch, and tell the compiler nothing: one that is 1 or a multiple of 16 must not mean
# another kernel.
ROW_COUNTS = ["num_rows", "patches", "splits"]


@triton.jit
def _row_origins(
    patch, tokens, grid_h, grid_w, stride_b, stride_t, stride_h, stride_w,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
):  # fmt: skip
    """Offset of each patch's first pixel; patches are int64."""
    token = patch % tokens
    t = token // (grid_h * grid_w)
    r = token // grid_w % grid_h
    c = token % grid_w
    return patch // tokens * stride_b + t * PT * stride_t + r * PH * stride_h + c * PW * stride_w


@triton.jit
def _column_offsets(k, stride_c, stride_t, stride_h, stride_w, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr):
    """Channel of each column, and its offset from the first pixel of a patch."""
    channel = k // (PT * PH * PW)
    t = k // (PH * PW) % PT
    y = k // PW % PH
    x = k % PW
    # 32 bits unless a stride needs more: half the registers, and `supports` has checked the extent of a patch.
    return channel, channel * stride_c + t * stride_t + y * stride_h + x * stride_w


@triton.jit
def _load_pixels(pixels, origins, inside, k, K: tl.constexpr, BK: tl.constexpr, mean, std, stride_c, stride_t, stride_h, stride_w,
                 PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, MEAN: tl.constexpr, STD: tl.constexpr,
                 COMPUTE: tl.constexpr):  # fmt: skip
    """Normalised pixels [rows, columns]: 0 in columns from K on, any value in rows outside."""
    channel, offsets = _column_offsets(k, stride_c, stride_t, stride_h, stride_w, PT, PH, PW)
    mask = inside[:, None]
    if K % BK != 0:
        mask = mask & (k < K)[None, :]
    raw = tl.load((pixels + origins)[:, None] + offsets[None, :], mask=mask, other=0)  # [BR, BK]
    x = raw.to(tl.float32)
    if MEAN:
        x -= tl.load(mean + channel, mask=k < K, other=0.0)[None, :]
    if STD:
        x *= (1.0 / tl.load(std + channel, mask=k < K, other=1.0))[None, :]
    return x.to(COMPUTE)


@triton.jit
def embed_tile(
    tile, pixels, weight, bias, rows, pos_embed, mean, std, out,
    num_rows, patches, tokens, width, grid_h, grid_w, stride_b, stride_c, stride_t, stride_h, stride_w,
    K: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    ROWS: tl.constexpr, BIAS: tl.constexpr, POSITIONS: tl.constexpr, MEAN: tl.constexpr, STD: tl.constexpr,
    COMPUTE: tl.constexpr, OUT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Tile `tile` of out[i] = normalised(patch rows[i]) @ weight^T + bias + pos_embed[rows[i] % tokens]."""
    # Neighbouring tiles share the rows: the pixels of a row tile stay in L2 while the weight, which all share, passes.
    tiles_d = tl.cdiv(width, BD)
    i = (tile // tiles_d).to(tl.int64) * BR + tl.arange(0, BR)  # [BR]
    d = tile % tiles_d * BD + tl.arange(0, BD)  # [BD]
    in_rows = i < num_rows
    in_width = d < width
    patch = i
    if ROWS:
        patch = tl.load(rows + i, mask=in_rows, other=-1)
    inside = in_rows & (patch >= 0) & (patch < patches)
    patch = tl.where(inside, patch, 0)
    origins = _row_origins(patch, tokens, grid_h, grid_w, stride_b, stride_t, stride_h, stride_w, PT, PH, PW)
    weight_rows = weight + d.to(tl.int64)[None, :] * K  # [1, BD]
    total = tl.zeros((BR, BD), tl.float32)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        x = _load_pixels(pixels, origins, inside, k, K, BK, mean, std, stride_c, stride_t, stride_h, stride_w,
                         PT, PH, PW, MEAN, STD, COMPUTE)  # [BR, BK]  # fmt: skip
        w_mask = in_width[None, :]
        if K % BK != 0:
            w_mask = w_mask & (k < K)[:, None]
        w = tl.load(weight_rows + k[:, None], mask=w_mask, other=0.0)  # [BK, BD]
        total = tl.dot(x, w, total, input_precision="ieee")
    if BIAS:
        total += tl.load(bias + d, mask=in_width, other=0.0).to(tl.float32)[None, :]
    stored = in_rows[:, None] & in_width[None, :]
    if POSITIONS:
        at = (patch % tokens).to(tl.int32)[:, None] * width + d[None, :]
        total += tl.load(pos_embed + at, mask=stored, other=0.0).to(tl.float32)
    total = tl.where(inside[:, None], total, float("nan"))
    place = out + (tile // tiles_d).to(tl.int64) * BR * width
    tl.store(place + tl.arange(0, BR)[:, None] * width + d[None, :], total.to(OUT), mask=stored)


@triton.jit(do_not_specialize=ROW_COUNTS)
def forward_kernel(
    pixels, weight, bias, rows, pos_embed, mean, std, out,
    num_rows, patches, tokens, width, grid_h, grid_w, stride_b, stride_c, stride_t, stride_h, stride_w,
    K: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    ROWS: tl.constexpr, BIAS: tl.constexpr, POSITIONS: tl.constexpr, MEAN: tl.constexpr, STD: tl.constexpr,
    COMPUTE: tl.constexpr, OUT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[i] = normalised(patch rows[i]) @ weight^T + bias + pos_embed[rows[i] % tokens]."""
    embed_tile(
        tl.program_id(0), pixels, weight, bias, rows, pos_embed, mean, std, out,
        num_rows, patches, tokens, width, grid_h, grid_w, stride_b, stride_c, stride_t, stride_h, stride_w,
        K, PT, PH, PW, ROWS, BIAS, POSITIONS, MEAN, STD, COMPUTE, OUT, BR, BD, BK,
    )  # fmt: skip


@triton.jit(do_not_specialize=ROW_COUNTS)
def backward_weight_kernel(
    grad, pixels, rows, mean, std, partial,
    num_rows, patches, tokens, width, grid_h, grid_w, stride_b, stride_c, stride_t, stride_h, stride_w,
    K: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    ROWS: tl.constexpr, MEAN: tl.constexpr, STD: tl.constexpr, COMPUTE: tl.constexpr, SPLIT: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """partial[s] = grad^T @ normalised pixels over the rows of split s, in float32."""
    split = tl.program_id(1).to(tl.int64)
    tiles_k = tl.cdiv(K, BK)
    d = tl.program_id(0) // tiles_k * BD + tl.arange(0, BD)  # [BD]
    k = tl.program_id(0) % tiles_k * BK + tl.arange(0, BK)  # [BK]
    in_width = d < width
    total = tl.zeros((BD, BK), tl.float32)
    stop = tl.minimum((split + 1) * SPLIT, num_rows)
    for first in range(split * SPLIT, stop, BR):
        i = first + tl.arange(0, BR)  # [BR]
        in_rows = i < stop
        patch = i
        if ROWS:
            patch = tl.load(rows + i, mask=in_rows, other=-1)
        inside = in_rows & (patch >= 0) & (patch < patches)
        origins = _row_origins(
            tl.where(inside, patch, 0), tokens, grid_h, grid_w, stride_b, stride_t, stride_h, stride_w, PT, PH, PW
        )
        x = _load_pixels(pixels, origins, inside, k, K, BK, mean, std, stride_c, stride_t, stride_h, stride_w,
                         PT, PH, PW, MEAN, STD, COMPUTE)  # [BR, BK]  # fmt: skip
        x = tl.where(inside[:, None], x, 0.0)
        dy = tl.load(
            grad + i[None, :] * width + d[:, None], mask=inside[None, :] & in_width[:, None], other=0.0
        )  # [BD, BR]
        total = tl.dot(dy, x, total, input_precision="ieee")
    at = (split * width + d[:, None]) * K + k[None, :]
    tl.store(partial + at, total, mask=in_width[:, None] & (k < K)[None, :])


@triton.jit(do_not_specialize=ROW_COUNTS)
def reduce_kernel(partial, out, numel, splits, BLOCK: tl.constexpr):
    """out = sum of partial over its splits, first to last."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = at < numel
    total = tl.zeros((BLOCK,), tl.float32)
    place = partial + at
    for _ in range(0, splits):
        total += tl.load(place, mask=inside, other=0.0)
        place += numel
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def sum_rows_kernel(values, order, starts, out, width, BD: tl.constexpr):
    """out[s] = sum of values[order[j]] over starts[s] <= j < starts[s + 1], in that order."""
    segment = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)  # [BD]
    inside = d < width
    total = tl.zeros((BD,), tl.float32)
    for j in range(tl.load(starts + segment), tl.load(starts + segment + 1)):
        row = tl.load(order + j)
        total += tl.load(values + row * width + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + segment * width + d, total, mask=inside)


@triton.jit(do_not_specialize=ROW_COUNTS)
def backward_pixels_kernel(
    grad, weight, std, grad_pixels,
    patches, tokens, width, grid_h, grid_w, stride_b, stride_c, stride_t, stride_h, stride_w,
    K: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, STD: tl.constexpr, PIXEL: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """grad_pixels of every patch = grad @ weight / std, written where the pixels lie."""
    tiles_k = tl.cdiv(K, BK)
    patch = (tl.program_id(0) // tiles_k).to(tl.int64) * BR + tl.arange(0, BR)  # [BR]
    k = tl.program_id(0) % tiles_k * BK + tl.arange(0, BK)  # [BK]
    inside = patch < patches
    total = tl.zeros((BR, BK), tl.float32)
    for first in range(0, width, BD):
        d = first + tl.arange(0, BD)
        in_width = d < width
        dy = tl.load(
            grad + patch[:, None] * width + d[None, :], mask=inside[:, None] & in_width[None, :], other=0.0
        )  # [BR, BD]
        w = tl.load(
            weight + d.to(tl.int64)[:, None] * K + k[None, :], mask=in_width[:, None] & (k < K)[None, :], other=0.0
        )  # [BD, BK]
        total = tl.dot(dy, w, total, input_precision="ieee")
    channel, offsets = _column_offsets(k, stride_c, stride_t, stride_h, stride_w, PT, PH, PW)
    if STD:
        total *= (1.0 / tl.load(std + channel, mask=k < K, other=1.0))[None, :]
    origins = _row_origins(patch, tokens, grid_h, grid_w, stride_b, stride_t, stride_h, stride_w, PT, PH, PW)
    at = (grad_pixels + origins)[:, None] + offsets[None, :]
    tl.store(at, total.to(PIXEL), mask=inside[:, None] & (k < K)[None, :])


def forward_tiles(dtype: torch.dtype, rows: int, pixel_bytes: int, adjacent: bool) -> dict[str, int]:
    """Tile sizes, the largest that compile without spills for every architecture and triton 3.6 and 3.9.

    Pixels that are not adjacent need an address each, wide ones room; few rows want small tiles, or most of a GPU would idle.
    """
    if dtype == torch.float32:
        return {"BR": 32, "BD": 64, "BK": 32, "num_warps": 4, "num_stages": 2}
    if not adjacent:
        return {"BR": 64, "BD": 64, "BK": 32, "num_warps": 8, "num_stages": 2}
    wide = pixel_bytes == 4
    if rows <= 1024:
        return {"BR": 64, "BD": 64, "BK": 32 if wide else 64, "num_warps": 4, "num_stages": 2 if wide else 3}
    return {"BR": 64, "BD": 128, "BK": 32 if wide else 64, "num_warps": 8, "num_stages": 3}


def weight_tiles(dtype: torch.dtype, pixel_bytes: int, adjacent: bool) -> dict[str, int]:
    if dtype == torch.float32:
        return {"BR": 16, "BD": 32, "BK": 64, "num_warps": 4, "num_stages": 2}
    rows = 64 if adjacent and pixel_bytes < 4 else 32
    return {"BR": rows, "BD": 128, "BK": 128, "num_warps": 8, "num_stages": 3 if pixel_bytes < 4 else 2}


def pixel_tiles(dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"BR": 64, "BD": 32, "BK": 64, "num_warps": 8, "num_stages": 2}
    return {"BR": 128, "BD": 64, "BK": 64, "num_warps": 8, "num_stages": 3}


def geometry(pixels: torch.Tensor, patch: tuple[int, ...]) -> tuple[list[int], dict[str, int]]:
    """Run-time sizes and strides of the pixels from `patches` on, and the patch size as compile-time constants."""
    batch, channels, frames, height, width = pixels.shape
    grid = (frames // patch[0], height // patch[1], width // patch[2])
    tokens = grid[0] * grid[1] * grid[2]
    stride_b, stride_c, stride_t, stride_h, stride_w = pixels.stride()
    constants = {"K": channels * patch[0] * patch[1] * patch[2], "PT": patch[0], "PH": patch[1], "PW": patch[2]}
    return [batch * tokens, tokens, *grid[1:], stride_b, stride_c, stride_t, stride_h, stride_w], constants


def forward(
    pixels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor | None,
    pos_embed: torch.Tensor | None,
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Writes the tokens of `rows` (all patches for None) to `out` (R, D). weight (D, C, pt, ph, pw), pos_embed: contiguous."""
    num_rows, width = out.shape
    if num_rows == 0:
        return
    (patches, tokens, *rest), constants = geometry(pixels, weight.shape[2:])
    tiles = forward_tiles(weight.dtype, num_rows, pixels.element_size(), pixels.stride(4) == 1)
    forward_kernel[(triton.cdiv(num_rows, tiles["BR"]) * triton.cdiv(width, tiles["BD"]),)](
        pixels, weight, bias, rows, pos_embed, mean, std, out, num_rows, patches, tokens, width, *rest, **constants,
        ROWS=rows is not None, BIAS=bias is not None, POSITIONS=pos_embed is not None, MEAN=mean is not None, STD=std is not None,
        COMPUTE=TRITON_DTYPES[weight.dtype], OUT=TRITON_DTYPES[out.dtype], **tiles,
    )  # fmt: skip


def backward_weight(
    grad: torch.Tensor,
    pixels: torch.Tensor,
    rows: torch.Tensor | None,
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
    grad_weight: torch.Tensor,
) -> None:
    """Writes grad^T @ normalised pixels of `rows` to `grad_weight` (D, C, pt, ph, pw); grad is (R, D), contiguous."""
    num_rows, width = grad.shape
    splits = max(1, triton.cdiv(num_rows, SPLIT_ROWS))
    (patches, tokens, *rest), constants = geometry(pixels, grad_weight.shape[2:])
    tiles = weight_tiles(grad.dtype, pixels.element_size(), pixels.stride(4) == 1)
    partial = grad.new_empty((splits, width, constants["K"]), dtype=torch.float32)
    grid = (triton.cdiv(width, tiles["BD"]) * triton.cdiv(constants["K"], tiles["BK"]), splits)
    backward_weight_kernel[grid](
        grad, pixels, rows, mean, std, partial, num_rows, patches, tokens, width, *rest, **constants,
        ROWS=rows is not None, MEAN=mean is not None, STD=std is not None, COMPUTE=TRITON_DTYPES[grad.dtype],
        SPLIT=SPLIT_ROWS, **tiles,
    )  # fmt: skip
    numel = grad_weight.numel()
    reduce_kernel[(triton.cdiv(numel, REDUCE_BLOCK),)](partial, grad_weight, numel, splits, BLOCK=REDUCE_BLOCK)


def sum_rows(values: torch.Tensor, segments: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """out[s] = sum of the rows of `values` with segments[row] == s, in the order of the rows; negative segments are left out."""
    count, width = out.shape
    ordered, order = torch.sort(segments, stable=True)
    starts = torch.searchsorted(ordered, torch.arange(count + 1, device=out.device))
    if count:
        block = min(1024, triton.next_power_of_2(width))
        sum_rows_kernel[(count, triton.cdiv(width, block))](values, order, starts, out, width, BD=block, num_warps=4)
    return out


def backward_pixels(
    grad: torch.Tensor, weight: torch.Tensor, std: torch.Tensor | None, grad_pixels: torch.Tensor
) -> None:
    """Writes grad @ weight / std to `grad_pixels` (B, C, T, H, W), any strides; grad holds one row a patch, (B * N, D)."""
    (patches, tokens, *rest), constants = geometry(grad_pixels, weight.shape[2:])
    if patches == 0:
        return
    tiles = pixel_tiles(weight.dtype)
    grid = (triton.cdiv(patches, tiles["BR"]) * triton.cdiv(constants["K"], tiles["BK"]),)
    backward_pixels_kernel[grid](
        grad, weight, std, grad_pixels, patches, tokens, weight.shape[0], *rest, **constants,
        STD=std is not None, PIXEL=TRITON_DTYPES[grad_pixels.dtype], **tiles,
    )  # fmt: skip
