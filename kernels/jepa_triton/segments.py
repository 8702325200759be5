"""Head dims split into power-of-two segments, so that tiles of 24, 80, 88 or 104 channels need not pad to the next power.

A "tile of D channels" is a tuple with one [ROWS, width] tensor a segment; the functions here load, store, rotate and
multiply such tuples.
"""

import triton
import triton.language as tl

MIN_SEGMENT = 16  # channels; the smallest contraction that a 16-bit tensor-core instruction takes
MAX_SEGMENTS = 2  # with three, 104 = 64+32+16 spilled registers on sm_120, which 128 in one piece does not


def head_dim_segments(head_dim: int, narrow: bool = False) -> tuple[tuple[int, int], ...]:
    """Split a head dim into power-of-two (start, width) segments, so that a tile need not pad to the next power.

    Padded channels are loaded as zeros and never stored. Waste (padded / real channels - 1):
    24 -> 32 (33 %), 32, 64, 80 = 64+16, 96 = 64+32, 128, 256: none, 88 -> 64+32 (9 %), 104 -> 128 (23 %).
    Padding to a power of two instead would waste 60 % at 80, 45 % at 88 and 33 % at 96.
    narrow: segments of MIN_SEGMENT, for float32, where each thread holds whole rows of both factors of a product.
    """
    if head_dim < 2 or head_dim > 256 or head_dim % 2:
        raise ValueError(f"head_dim must be even and between 2 and 256, got {head_dim}")
    padded = -(-head_dim // MIN_SEGMENT) * MIN_SEGMENT
    if narrow:
        return tuple((start, MIN_SEGMENT) for start in range(0, padded, MIN_SEGMENT))
    while bin(padded).count("1") > MAX_SEGMENTS:
        padded += padded & -padded
    segments, start = [], 0
    for bit in reversed(range(padded.bit_length())):
        width = padded & (1 << bit)
        if width:
            segments.append((start, width))
            start += width
    return tuple(segments)


@triton.jit
def load_tile(
    base,
    row_stride,
    row_end,
    start,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """Channels [start, start + WIDTH) of ROWS rows: [ROWS, WIDTH]. Zeros past row_end, unless it is None, and past HEAD_DIM.

    PARTIAL: some of the channels may lie past HEAD_DIM.
    """
    rows = tl.arange(0, ROWS)[:, None]
    channels = start + tl.arange(0, WIDTH)[None, :]
    pointers = base + rows * row_stride + channels
    if row_end is not None:
        inside = rows < row_end
        if PARTIAL:
            inside = inside & (channels < HEAD_DIM)
        tile = tl.load(pointers, mask=inside, other=0.0)
    elif PARTIAL:
        tile = tl.load(pointers, mask=channels < HEAD_DIM, other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_tile(base, row_stride, row_end, tile, START: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Inverse of load_tile: writes tile [ROWS, WIDTH] as channels from START on, in the dtype of base."""
    rows = tl.arange(0, tile.shape[0])
    channels = START + tl.arange(0, tile.shape[1])
    pointers = base + rows[:, None] * row_stride + channels[None, :]
    inside = (rows[:, None] < row_end) & (channels[None, :] < HEAD_DIM)
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def zero_tile(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    return tl.zeros([ROWS, WIDTH], dtype=tl.float32)


@triton.jit
def load_segments(base, row_stride, row_end, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr):
    """One [ROWS, width] tile a segment. row_stride is int64, so no product of it overflows."""
    tiles = ()
    for i in tl.static_range(len(SEGMENTS)):
        tiles = tiles + (
            load_tile(
                base, row_stride, row_end, SEGMENTS[i][0], SEGMENTS[i][1], ROWS, HEAD_DIM,
                SEGMENTS[i][0] + SEGMENTS[i][1] > HEAD_DIM,
            ),
        )  # fmt: skip
    return tiles


@triton.jit
def store_segments(base, row_stride, row_end, tiles, HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr):
    for i in tl.static_range(len(SEGMENTS)):
        store_tile(base, row_stride, row_end, tiles[i], SEGMENTS[i][0], HEAD_DIM)


@triton.jit
def zero_segments(ROWS: tl.constexpr, SEGMENTS: tl.constexpr):
    tiles = ()
    for i in tl.static_range(len(SEGMENTS)):
        tiles = tiles + (zero_tile(ROWS, SEGMENTS[i][1]),)
    return tiles


@triton.jit
def scale_segments(tiles, factor):
    """Every tile times factor, a scalar or [ROWS, 1]."""
    scaled = ()
    for i in tl.static_range(len(tiles)):
        scaled = scaled + (tiles[i] * factor,)
    return scaled


@triton.jit
def keep_rows(tiles, keep):
    """Rows where keep [ROWS] is false become zeros, whatever they hold: 0 * NaN would be NaN in a product."""
    kept = ()
    for i in tl.static_range(len(tiles)):
        kept = kept + (tl.where(keep[:, None], tiles[i], 0.0).to(tiles[i].dtype),)
    return kept


@triton.jit
def dot_transposed(a, b):
    """a b^T over all segments: [M, D] x [N, D] -> [M, N] in float32. "ieee" keeps TF32 out of float32 inputs."""
    product = tl.dot(a[0], tl.trans(b[0]), input_precision="ieee")
    for i in tl.static_range(1, len(a)):
        product = tl.dot(a[i], tl.trans(b[i]), product, input_precision="ieee")
    return product


@triton.jit
def dot_rows(
    a_base,
    a_row,
    a_left,
    b_base,
    b_row,
    b_left,
    M: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """dot_transposed of M rows at a_base and N rows at b_base, read again WIDTH channels at a time, in float32.

    Without tensor cores a thread keeps its rows of both factors in registers: whole rows of D float32 values would spill.
    """
    product = tl.zeros([M, N], dtype=tl.float32)
    for channel in range(0, HEAD_DIM, WIDTH):
        a = load_tile(a_base, a_row, a_left, channel, WIDTH, M, HEAD_DIM, HEAD_DIM % WIDTH != 0)  # [M, WIDTH]
        b = load_tile(b_base, b_row, b_left, channel, WIDTH, N, HEAD_DIM, HEAD_DIM % WIDTH != 0)  # [N, WIDTH]
        product = tl.dot(a, tl.trans(b), product, input_precision="ieee")
    return product


@triton.jit
def dot_accumulate(weights, tiles, accumulators):
    """accumulators + weights tiles: [M, N] x [N, D] -> [M, D], weights rounded to the dtype of tiles."""
    sums = ()
    for i in tl.static_range(len(tiles)):
        sums = sums + (tl.dot(weights.to(tiles[i].dtype), tiles[i], accumulators[i], input_precision="ieee"),)
    return sums


@triton.jit
def sum_products(a, b):
    """Row sums of a * b over all segments, in float32: [ROWS]."""
    total = tl.sum(a[0].to(tl.float32) * b[0].to(tl.float32), axis=1)
    for i in tl.static_range(1, len(a)):
        total += tl.sum(a[i].to(tl.float32) * b[i].to(tl.float32), axis=1)
    return total


@triton.jit
def swap_pairs(x):
    """Channel c takes the place of its partner c ^ 1. Both lie in one thread, so this moves no data between threads."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
    return tl.reshape(tl.join(odd, even), [x.shape[0], x.shape[1]])


@triton.jit
def rotate_segments(tiles, cos, sin):
    """y[c] = x[c] cos[c] + x[c^1] sin[c] in float32, rounded to the dtype of x."""
    rotated = ()
    for i in tl.static_range(len(tiles)):
        x = tiles[i].to(tl.float32)
        rotated = rotated + ((x * cos[i] + swap_pairs(x) * sin[i]).to(tiles[i].dtype),)
    return rotated


@triton.jit
def unrotate_segments(tiles, cos, sin):
    """Transpose of rotate_segments, for gradients in float32: dx[c] = dy[c] cos[c] + dy[c^1] sin[c^1]."""
    gradients = ()
    for i in tl.static_range(len(tiles)):
        gradients = gradients + (tiles[i] * cos[i] + swap_pairs(tiles[i] * sin[i]),)
    return gradients
