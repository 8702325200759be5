"""Attention forward: one program keeps a tile of queries and streams the keys it may see through an online softmax."""

import triton
import triton.language as tl

from .masked_attention_bounds import RUNTIME_INTEGERS, key_limit, load_bool_tile, rows_at, work_item
from .segments import (
    dot_accumulate,
    dot_rows,
    dot_transposed,
    keep_rows,
    load_segments,
    rotate_segments,
    scale_segments,
    store_segments,
    zero_segments,
)

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _update_softmax(scores, visible, row_max, row_sum, scale_log2, MASKED: tl.constexpr):
    """Online softmax in base 2: weights [M, N] relative to the new row_max [M], and the factor for what was summed before."""
    if MASKED:
        scores = tl.where(visible, scores * scale_log2, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        # A row that has seen no key yet would compute -inf - -inf.
        finite_max = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores - finite_max[:, None])
        decay = tl.exp2(row_max - finite_max)
    else:
        new_max = tl.maximum(row_max, tl.max(scores, axis=1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_max[:, None])
        decay = tl.exp2(row_max - new_max)
    return weights, decay, new_max, row_sum * decay + tl.sum(weights, axis=1)


@triton.jit
def _attend_tile(
    accumulators, row_max, row_sum, q, visible, keys_left, k_base, k_row, v_base, v_row, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, CHANNEL_LOOP: tl.constexpr, NEGATIVE_SCALE: tl.constexpr,
    BLOCK_N: tl.constexpr, MASKED: tl.constexpr, BOOL_MASK: tl.constexpr,
):  # fmt: skip
    """Adds the keys of one tile to (accumulators [M, D], row_max [M], row_sum [M])."""
    if CHANNEL_LOOP:
        block_m: tl.constexpr = row_max.shape[0]
        scores = dot_rows(
            q[0], q[1], q[2], k_base, k_row, keys_left, block_m, BLOCK_N, SEGMENTS[0][1], HEAD_DIM
        )  # [M, N]
    else:
        k = load_segments(k_base, k_row, keys_left, BLOCK_N, HEAD_DIM, SEGMENTS)  # [N, D]
        scores = dot_transposed(q, k)  # [M, N]
    if NEGATIVE_SCALE:  # the running maximum is taken before scaling
        scores = -scores
    weights, decay, row_max, row_sum = _update_softmax(scores, visible, row_max, row_sum, scale_log2, MASKED)
    v = load_segments(v_base, v_row, keys_left, BLOCK_N, HEAD_DIM, SEGMENTS)  # [N, D]
    if BOOL_MASK:
        v = keep_rows(v, tl.max(visible.to(tl.int32), axis=0) > 0)
    accumulators = dot_accumulate(weights, v, scale_segments(accumulators, decay[:, None]))
    return accumulators, row_max, row_sum


@triton.jit
def _attend_range(
    accumulators, row_max, row_sum, q, limits, begin, end,
    k_base, k_row, v_base, v_row, mask_base, mask_row, queries_left, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, CHANNEL_LOOP: tl.constexpr, NEGATIVE_SCALE: tl.constexpr,
    BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Keys [begin, end). MASKED: key j counts for the rows whose limit exceeds j, or where the boolean mask is true."""
    keys = tl.arange(0, BLOCK_N)
    for start in range(begin, end, BLOCK_N):
        keys_left = None
        if MASKED:
            keys_left = end - start
        k_tile = k_base + start * k_row
        v_tile = v_base + start * v_row
        if mask_base is not None:
            visible = load_bool_tile(mask_base + start, mask_row, 1, queries_left, keys_left, limits.shape[0], BLOCK_N)
            if tl.max(tl.max(visible.to(tl.int32), axis=1), axis=0) > 0:
                accumulators, row_max, row_sum = _attend_tile(
                    accumulators, row_max, row_sum, q, visible, keys_left, k_tile, k_row, v_tile, v_row, scale_log2,
                    HEAD_DIM, SEGMENTS, CHANNEL_LOOP, NEGATIVE_SCALE, BLOCK_N, MASKED, True,
                )  # fmt: skip
        else:
            visible = start + keys[None, :] < limits[:, None]  # [M, N]
            accumulators, row_max, row_sum = _attend_tile(
                accumulators, row_max, row_sum, q, visible, keys_left, k_tile, k_row, v_tile, v_row, scale_log2,
                HEAD_DIM, SEGMENTS, CHANNEL_LOOP, NEGATIVE_SCALE, BLOCK_N, MASKED, False,
            )  # fmt: skip
    return accumulators, row_max, row_sum


@triton.jit
def _attend_queries(
    item, grid, q_view, k_view, v_view, out_view, lse_view, mask_view, cos_view, sin_view,
    tokens_per_frame, query_frame_offset, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, STRIDE_UNIT: tl.constexpr, MASK_STRIDE_UNIT: tl.constexpr,
    FRAME_CAUSAL: tl.constexpr, CHANNEL_LOOP: tl.constexpr, NEGATIVE_SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out and lse of one item: BLOCK_M queries of one head."""
    batch, head, first, row, query_count, key_count = work_item(item, grid, BLOCK_M)
    if row < query_count:
        left = query_count - row
        token = first + row
        q_base, q_row = rows_at(q_view, batch, head, token, STRIDE_UNIT)
        if CHANNEL_LOOP:
            q = (q_base, q_row, left)
        else:
            q = load_segments(q_base, q_row, left, BLOCK_M, HEAD_DIM, SEGMENTS)  # [M, D]
        if cos_view[0] is not None:
            cos_base, cos_row = rows_at(cos_view, batch, head, token, STRIDE_UNIT)
            sin_base, sin_row = rows_at(sin_view, batch, head, token, STRIDE_UNIT)
            cos = load_segments(cos_base, cos_row, left, BLOCK_M, HEAD_DIM, SEGMENTS)  # [M, D]
            sin = load_segments(sin_base, sin_row, left, BLOCK_M, HEAD_DIM, SEGMENTS)  # [M, D]
            q = rotate_segments(q, cos, sin)

        k_base, k_row = rows_at(k_view, batch, head, first, STRIDE_UNIT)
        v_base, v_row = rows_at(v_view, batch, head, first, STRIDE_UNIT)
        mask_base = None
        mask_row = 0
        if mask_view[0] is not None:
            mask_base, mask_row = rows_at(mask_view, batch, head, row, MASK_STRIDE_UNIT)
        rows = tl.arange(0, BLOCK_M)  # [M]
        limits = key_limit(row + rows, key_count, tokens_per_frame, query_frame_offset, FRAME_CAUSAL)  # [M]
        last = tl.minimum(row + BLOCK_M, query_count) - 1
        end = key_limit(last, key_count, tokens_per_frame, query_frame_offset, FRAME_CAUSAL)
        unmasked_end = 0
        accumulators = zero_segments(BLOCK_M, SEGMENTS)  # [M, D]
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
        if mask_view[0] is None:
            unmasked_end = key_limit(row, key_count, tokens_per_frame, query_frame_offset, FRAME_CAUSAL)
            unmasked_end = unmasked_end // BLOCK_N * BLOCK_N
            accumulators, row_max, row_sum = _attend_range(
                accumulators, row_max, row_sum, q, limits, 0, unmasked_end, k_base, k_row, v_base, v_row,
                None, 0, left, scale_log2, HEAD_DIM, SEGMENTS, CHANNEL_LOOP, NEGATIVE_SCALE, BLOCK_N, False,
            )  # fmt: skip
        accumulators, row_max, row_sum = _attend_range(
            accumulators, row_max, row_sum, q, limits, unmasked_end, end, k_base, k_row, v_base, v_row,
            mask_base, mask_row, left, scale_log2, HEAD_DIM, SEGMENTS, CHANNEL_LOOP, NEGATIVE_SCALE, BLOCK_N, True,
        )  # fmt: skip

        # No visible key: the sum is 0, the output 0 and lse = -inf + log2(0) = -inf.
        inverse = tl.where(row_sum == 0.0, 0.0, 1.0 / row_sum)
        lse = (row_max + tl.log2(row_sum)) * LN_2
        lse_base, _ = rows_at(lse_view, batch, head, token, 1)
        tl.store(lse_base + rows, lse, mask=rows < left)
        out_base, out_row = rows_at(out_view, batch, head, token, STRIDE_UNIT)
        store_segments(out_base, out_row, left, scale_segments(accumulators, inverse[:, None]), HEAD_DIM, SEGMENTS)


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, mask_ptr, key_lengths_ptr, cu_seqlens_ptr, cos_ptr, sin_ptr,
    q_stride_b: tl.int64, q_stride_h: tl.int64, q_stride_n: tl.int64,
    k_stride_b: tl.int64, k_stride_h: tl.int64, k_stride_n: tl.int64,
    v_stride_b: tl.int64, v_stride_h: tl.int64, v_stride_n: tl.int64,
    out_stride_b: tl.int64, out_stride_h: tl.int64, out_stride_n: tl.int64,
    mask_stride_b: tl.int64, mask_stride_h: tl.int64, mask_stride_q: tl.int64,
    cos_stride_b: tl.int64, cos_stride_n: tl.int64, sin_stride_b: tl.int64, sin_stride_n: tl.int64,
    num_heads, query_len, key_len, num_tiles, num_sequences, tokens_per_frame, query_frame_offset, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, STRIDE_UNIT: tl.constexpr, MASK_STRIDE_UNIT: tl.constexpr,
    FRAME_CAUSAL: tl.constexpr, CHANNEL_LOOP: tl.constexpr, NEGATIVE_SCALE: tl.constexpr, PERSISTENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = softmax(scale q k^T) v and lse = ln sum exp(scale q k^T), a tile of BLOCK_M queries of one head an item.

    k comes rotated already; q is rotated here, where each row is read once, unless CHANNEL_LOOP reads it again for each
    tile of keys: then it comes rotated and without tables. scale_log2 = |scale| log2(e).
    """
    q_view = (q_ptr, q_stride_b, q_stride_h, q_stride_n)
    k_view = (k_ptr, k_stride_b, k_stride_h, k_stride_n)
    v_view = (v_ptr, v_stride_b, v_stride_h, v_stride_n)
    out_view = (out_ptr, out_stride_b, out_stride_h, out_stride_n)
    lse_view = (lse_ptr, num_heads.to(tl.int64) * query_len, query_len.to(tl.int64), 1)
    mask_view = (mask_ptr, mask_stride_b, mask_stride_h, mask_stride_q)
    cos_view = (cos_ptr, cos_stride_b, 0, cos_stride_n)
    sin_view = (sin_ptr, sin_stride_b, 0, sin_stride_n)
    grid = (num_tiles, num_heads, query_len, key_len, key_lengths_ptr, cu_seqlens_ptr, num_sequences)
    if PERSISTENT:
        for item in tl.range(tl.program_id(0), num_tiles * num_heads, tl.num_programs(0), disable_licm=True):
            _attend_queries(
                item, grid, q_view, k_view, v_view, out_view, lse_view, mask_view, cos_view, sin_view,
                tokens_per_frame, query_frame_offset, scale_log2, HEAD_DIM, SEGMENTS, STRIDE_UNIT, MASK_STRIDE_UNIT,
                FRAME_CAUSAL, CHANNEL_LOOP, NEGATIVE_SCALE, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    else:
        _attend_queries(
            tl.program_id(0), grid, q_view, k_view, v_view, out_view, lse_view, mask_view, cos_view, sin_view,
            tokens_per_frame, query_frame_offset, scale_log2, HEAD_DIM, SEGMENTS, STRIDE_UNIT, MASK_STRIDE_UNIT,
            FRAME_CAUSAL, CHANNEL_LOOP, NEGATIVE_SCALE, BLOCK_M, BLOCK_N,
        )  # fmt: skip
