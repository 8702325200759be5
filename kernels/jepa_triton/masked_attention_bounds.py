"""Which keys a query may attend to, as loop bounds: every mask but the boolean one is a prefix of the keys per query.

Frame-causal: query i, of frame query_frame_offset + i // tokens_per_frame, sees the keys of frames up to its own, so
    key_limit(i) = (query_frame_offset + i // tokens_per_frame + 1) * tokens_per_frame, within [0, key count].
It never falls as i grows, so a tile of queries visits keys [0, limit of its last row) and needs a comparison only
beyond the limit of its first. Seen from key j, the queries that see it are the suffix
    first_query(j) = (j // tokens_per_frame - query_frame_offset) * tokens_per_frame, not below 0.
"""

import triton
import triton.language as tl

from .ragged_items import ragged_item

# Integer arguments of the attention kernels that Triton must not specialise on: a length or stride that happens to be 1
# or a multiple of 16 would otherwise compile another kernel, and lengths change with every mask.
RUNTIME_INTEGERS = [
    "num_heads", "query_len", "key_len", "num_tiles", "num_sequences", "tokens_per_frame", "query_frame_offset",
    *(f"{name}_stride_{axis}" for name in ("q", "k", "v", "dout", "out", "dq", "dk", "dv") for axis in "bhn"),
    *(f"{name}_stride_{axis}" for name in ("cos", "sin") for axis in "bn"),
    *(f"mask_stride_{axis}" for axis in "bhq"),
]  # fmt: skip


@triton.jit
def work_item(item, grid, BLOCK: tl.constexpr):
    """(batch, head, first token, row, query count, key count): BLOCK rows from `row` on, of a batch item or sequence.

    grid: tiles a head, heads, queries, keys, key_lengths, cu_seqlens and number of sequences of the whole call. Tiles of one head
    are neighbours, so its keys and values stay in L2. The last tile comes first: in a frame-causal mask it has the most keys, and
    the longest work should start earliest. Lengths on the device are clamped to the tensor.
    """
    num_tiles, num_heads, query_count, key_count, key_lengths_ptr, cu_seqlens_ptr, num_sequences = grid
    if cu_seqlens_ptr is not None:
        batch = 0
        head, first, row, query_count, key_count = ragged_item(
            item, cu_seqlens_ptr, num_sequences, num_heads, query_count, BLOCK
        )
    else:
        batch = item // (num_tiles * num_heads)
        head = (item // num_tiles) % num_heads
        first = 0
        row = (num_tiles - 1 - item % num_tiles) * BLOCK
        if key_lengths_ptr is not None:
            key_count = tl.minimum(tl.maximum(tl.load(key_lengths_ptr + batch), 0), key_count)
    return batch, head, first, row, query_count, key_count


@triton.jit
def rows_at(view, batch, head, token, UNIT: tl.constexpr):
    """(pointer to the row of a token, stride of rows). view: pointer, and strides of batch, head and token in UNIT elements."""
    return view[0] + (batch * view[1] + head * view[2] + token * view[3]) * UNIT, view[3] * UNIT


@triton.jit
def key_limit(query, key_count, tokens_per_frame, query_frame_offset, FRAME_CAUSAL: tl.constexpr):
    """How many leading keys each query (a scalar or a tile of row numbers) may attend to."""
    if FRAME_CAUSAL:
        limit = (query_frame_offset + query // tokens_per_frame + 1) * tokens_per_frame
        limit = tl.minimum(tl.maximum(limit, 0), key_count)
    else:
        limit = query * 0 + key_count
    return limit


@triton.jit
def first_query(key, tokens_per_frame, query_frame_offset, FRAME_CAUSAL: tl.constexpr):
    """The first query that may attend to each key (a scalar or a tile of key numbers)."""
    if FRAME_CAUSAL:
        first = tl.maximum((key // tokens_per_frame - query_frame_offset) * tokens_per_frame, 0)
    else:
        first = key * 0
    return first


@triton.jit
def load_bool_tile(base, row_stride, col_stride, row_end, col_end, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS] of a boolean mask, false past the ends. The strides are 1 along keys and any, also 0, along queries."""
    rows = tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, COLS)[None, :]
    inside = (rows < row_end) & (cols < col_end)
    return tl.load(base + rows * row_stride + cols * col_stride, mask=inside, other=0) != 0
