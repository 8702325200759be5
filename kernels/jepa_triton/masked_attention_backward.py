"""Attention backward in two deterministic kernels: dQ streams keys past a query tile, dK and dV stream queries past a key tile.

With P = exp(scale q k^T - lse), dP = dout v^T and delta = rowsum(dout * out):
    dS = P * (dP - delta),  dQ = scale dS k,  dK = scale dS^T q,  dV = P^T dout.
Each gradient tile has one writer that adds in a fixed order, so no atomics. q and k come rotated; dQ and dK are
rotated back by the transpose while still in float32. The dQ kernel runs first and leaves delta for the other.
A row without a visible key has lse = -inf; reading that as +inf makes its P, and so all its gradients, zero.
"""

import triton
import triton.language as tl

from .masked_attention_bounds import (
    RUNTIME_INTEGERS,
    first_query,
    key_limit,
    load_bool_tile,
    rows_at,
    work_item,
)
from .segments import (
    dot_accumulate,
    dot_rows,
    dot_transposed,
    keep_rows,
    load_segments,
    scale_segments,
    store_segments,
    sum_products,
    unrotate_segments,
    zero_segments,
)

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load_lse(base, rows, rows_left):
    """Base-2 log-sum-exp [M]; +inf where there is no row or the row saw no key, so that exp2(s - lse) is 0."""
    lse = tl.load(base + rows, mask=rows < rows_left, other=float("inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse * LOG2_E)


@triton.jit
def _query_gradient_tile(
    dq, q, dout, lse, delta, visible, keys_left, k_base, k_row, v_base, v_row, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, CHANNEL_LOOP: tl.constexpr,
    BLOCK_N: tl.constexpr, MASKED: tl.constexpr, BOOL_MASK: tl.constexpr,
):  # fmt: skip
    """dq [M, D] plus the keys of one tile."""
    k = load_segments(k_base, k_row, keys_left, BLOCK_N, HEAD_DIM, SEGMENTS)  # [N, D]
    if CHANNEL_LOOP:
        block_m: tl.constexpr = lse.shape[0]
        scores = dot_rows(q[0], q[1], q[2], k_base, k_row, keys_left, block_m, BLOCK_N, SEGMENTS[0][1], HEAD_DIM)
        dweights = dot_rows(
            dout[0], dout[1], dout[2], v_base, v_row, keys_left, block_m, BLOCK_N, SEGMENTS[0][1], HEAD_DIM
        )
    else:
        scores = dot_transposed(q, k)  # [M, N]
        dweights = dot_transposed(dout, load_segments(v_base, v_row, keys_left, BLOCK_N, HEAD_DIM, SEGMENTS))  # [M, N]
    weights = tl.exp2(scores * scale_log2 - lse[:, None])  # [M, N]
    dscores = weights * (dweights - delta[:, None])  # [M, N]
    if MASKED:
        dscores = tl.where(visible, dscores, 0.0)
    if BOOL_MASK:
        k = keep_rows(k, tl.max(visible.to(tl.int32), axis=0) > 0)
    return dot_accumulate(dscores, k, dq)


@triton.jit
def _query_gradient_range(
    dq, q, dout, lse, delta, limits, begin, end, k_base, k_row, v_base, v_row, mask_base, mask_row,
    queries_left, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, CHANNEL_LOOP: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """dq plus the keys [begin, end). MASKED as in the forward kernel."""
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
                dq = _query_gradient_tile(
                    dq, q, dout, lse, delta, visible, keys_left, k_tile, k_row, v_tile, v_row, scale_log2,
                    HEAD_DIM, SEGMENTS, CHANNEL_LOOP, BLOCK_N, MASKED, True,
                )  # fmt: skip
        else:
            visible = start + keys[None, :] < limits[:, None]  # [M, N]
            dq = _query_gradient_tile(
                dq, q, dout, lse, delta, visible, keys_left, k_tile, k_row, v_tile, v_row, scale_log2,
                HEAD_DIM, SEGMENTS, CHANNEL_LOOP, BLOCK_N, MASKED, False,
            )  # fmt: skip
    return dq


@triton.jit
def _query_gradient(
    item, grid, q_view, k_view, v_view, dout_view, out_view, lse_view, delta_view, dq_view,
    mask_view, cos_view, sin_view, tokens_per_frame, query_frame_offset, scale, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, STRIDE_UNIT: tl.constexpr, MASK_STRIDE_UNIT: tl.constexpr,
    FRAME_CAUSAL: tl.constexpr, CHANNEL_LOOP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq and delta of one item: BLOCK_M queries of one head."""
    batch, head, first, row, query_count, key_count = work_item(item, grid, BLOCK_M)
    if row < query_count:
        rows = tl.arange(0, BLOCK_M)  # [M]
        left = query_count - row
        token = first + row
        q_base, q_row = rows_at(q_view, batch, head, token, STRIDE_UNIT)
        dout_base, dout_row = rows_at(dout_view, batch, head, token, STRIDE_UNIT)
        out_base, out_row = rows_at(out_view, batch, head, token, STRIDE_UNIT)
        dout_tile = load_segments(dout_base, dout_row, left, BLOCK_M, HEAD_DIM, SEGMENTS)  # [M, D]
        out = load_segments(out_base, out_row, left, BLOCK_M, HEAD_DIM, SEGMENTS)  # [M, D]
        delta = sum_products(dout_tile, out)  # [M]
        delta_base, _ = rows_at(delta_view, batch, head, token, 1)
        tl.store(delta_base + rows, delta, mask=rows < left)
        lse_base, _ = rows_at(lse_view, batch, head, token, 1)
        lse = _load_lse(lse_base, rows, left)  # [M]
        if CHANNEL_LOOP:
            q = (q_base, q_row, left)
            dout = (dout_base, dout_row, left)
        else:
            q = load_segments(q_base, q_row, left, BLOCK_M, HEAD_DIM, SEGMENTS)  # [M, D]
            dout = dout_tile

        k_base, k_row = rows_at(k_view, batch, head, first, STRIDE_UNIT)
        v_base, v_row = rows_at(v_view, batch, head, first, STRIDE_UNIT)
        mask_base = None
        mask_row = 0
        if mask_view[0] is not None:
            mask_base, mask_row = rows_at(mask_view, batch, head, row, MASK_STRIDE_UNIT)
        limits = key_limit(row + rows, key_count, tokens_per_frame, query_frame_offset, FRAME_CAUSAL)  # [M]
        last = tl.minimum(row + BLOCK_M, query_count) - 1
        end = key_limit(last, key_count, tokens_per_frame, query_frame_offset, FRAME_CAUSAL)
        unmasked_end = 0
        dq = zero_segments(BLOCK_M, SEGMENTS)  # [M, D]
        if mask_view[0] is None:
            unmasked_end = key_limit(row, key_count, tokens_per_frame, query_frame_offset, FRAME_CAUSAL)
            unmasked_end = unmasked_end // BLOCK_N * BLOCK_N
            dq = _query_gradient_range(
                dq, q, dout, lse, delta, limits, 0, unmasked_end, k_base, k_row, v_base, v_row, None, 0,
                left, scale_log2, HEAD_DIM, SEGMENTS, CHANNEL_LOOP, BLOCK_N, False,
            )  # fmt: skip
        dq = _query_gradient_range(
            dq, q, dout, lse, delta, limits, unmasked_end, end, k_base, k_row, v_base, v_row, mask_base, mask_row,
            left, scale_log2, HEAD_DIM, SEGMENTS, CHANNEL_LOOP, BLOCK_N, True,
        )  # fmt: skip

        dq = scale_segments(dq, scale)
        if cos_view[0] is not None:
            cos_base, cos_row = rows_at(cos_view, batch, head, token, STRIDE_UNIT)
            sin_base, sin_row = rows_at(sin_view, batch, head, token, STRIDE_UNIT)
            seeing = tl.where(key_count > 0, left, 0)  # no key, no gradient, whatever the tables hold
            cos = load_segments(cos_base, cos_row, seeing, BLOCK_M, HEAD_DIM, SEGMENTS)  # [M, D]
            sin = load_segments(sin_base, sin_row, seeing, BLOCK_M, HEAD_DIM, SEGMENTS)  # [M, D]
            dq = unrotate_segments(dq, cos, sin)
        dq_base, dq_row = rows_at(dq_view, batch, head, token, STRIDE_UNIT)
        store_segments(dq_base, dq_row, left, dq, HEAD_DIM, SEGMENTS)


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr, out_ptr, lse_ptr, delta_ptr, dq_ptr,
    mask_ptr, key_lengths_ptr, cu_seqlens_ptr, cos_ptr, sin_ptr,
    q_stride_b: tl.int64, q_stride_h: tl.int64, q_stride_n: tl.int64,
    k_stride_b: tl.int64, k_stride_h: tl.int64, k_stride_n: tl.int64,
    v_stride_b: tl.int64, v_stride_h: tl.int64, v_stride_n: tl.int64,
    dout_stride_b: tl.int64, dout_stride_h: tl.int64, dout_stride_n: tl.int64,
    out_stride_b: tl.int64, out_stride_h: tl.int64, out_stride_n: tl.int64,
    dq_stride_b: tl.int64, dq_stride_h: tl.int64, dq_stride_n: tl.int64,
    mask_stride_b: tl.int64, mask_stride_h: tl.int64, mask_stride_q: tl.int64,
    cos_stride_b: tl.int64, cos_stride_n: tl.int64, sin_stride_b: tl.int64, sin_stride_n: tl.int64,
    num_heads, query_len, key_len, num_tiles, num_sequences, tokens_per_frame, query_frame_offset, scale, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, STRIDE_UNIT: tl.constexpr, MASK_STRIDE_UNIT: tl.constexpr,
    FRAME_CAUSAL: tl.constexpr, CHANNEL_LOOP: tl.constexpr, PERSISTENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq and delta = rowsum(dout * out) for one tile of BLOCK_M queries of one head. scale_log2 = scale log2(e)."""
    q_view = (q_ptr, q_stride_b, q_stride_h, q_stride_n)
    k_view = (k_ptr, k_stride_b, k_stride_h, k_stride_n)
    v_view = (v_ptr, v_stride_b, v_stride_h, v_stride_n)
    dout_view = (dout_ptr, dout_stride_b, dout_stride_h, dout_stride_n)
    out_view = (out_ptr, out_stride_b, out_stride_h, out_stride_n)
    dq_view = (dq_ptr, dq_stride_b, dq_stride_h, dq_stride_n)
    lse_view = (lse_ptr, num_heads.to(tl.int64) * query_len, query_len.to(tl.int64), 1)
    delta_view = (delta_ptr, lse_view[1], lse_view[2], 1)
    mask_view = (mask_ptr, mask_stride_b, mask_stride_h, mask_stride_q)
    cos_view = (cos_ptr, cos_stride_b, 0, cos_stride_n)
    sin_view = (sin_ptr, sin_stride_b, 0, sin_stride_n)
    grid = (num_tiles, num_heads, query_len, key_len, key_lengths_ptr, cu_seqlens_ptr, num_sequences)
    if PERSISTENT:
        for item in tl.range(tl.program_id(0), num_tiles * num_heads, tl.num_programs(0), disable_licm=True):
            _query_gradient(
                item, grid, q_view, k_view, v_view, dout_view,
            out_view, lse_view, delta_view, dq_view, mask_view, cos_view, sin_view,
                tokens_per_frame, query_frame_offset, scale, scale_log2, HEAD_DIM, SEGMENTS, STRIDE_UNIT, MASK_STRIDE_UNIT,
                FRAME_CAUSAL, CHANNEL_LOOP, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    else:
        _query_gradient(
            tl.program_id(0), grid, q_view, k_view, v_view, dout_view,
            out_view, lse_view, delta_view, dq_view, mask_view, cos_view, sin_view,
            tokens_per_frame, query_frame_offset, scale, scale_log2, HEAD_DIM, SEGMENTS, STRIDE_UNIT, MASK_STRIDE_UNIT,
            FRAME_CAUSAL, CHANNEL_LOOP, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def _key_gradient_tile(
    dk, dv, k, v, visible, queries_left, q_base, q_row, dout_base, dout_row, lse_base, delta_base, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, CHANNEL_LOOP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, BOOL_MASK: tl.constexpr,
):  # fmt: skip
    """(dk, dv) [N, D] plus the queries of one tile. Rows past the last query are zeros with lse = +inf and add nothing."""
    rows = tl.arange(0, BLOCK_M)
    q = load_segments(q_base, q_row, queries_left, BLOCK_M, HEAD_DIM, SEGMENTS)  # [M, D]
    lse = _load_lse(lse_base, rows, queries_left)  # [M]
    dout = load_segments(dout_base, dout_row, queries_left, BLOCK_M, HEAD_DIM, SEGMENTS)  # [M, D]
    if CHANNEL_LOOP:
        scores = dot_rows(k[0], k[1], k[2], q_base, q_row, queries_left, BLOCK_N, BLOCK_M, SEGMENTS[0][1], HEAD_DIM)
        dweights = dot_rows(
            v[0], v[1], v[2], dout_base, dout_row, queries_left, BLOCK_N, BLOCK_M, SEGMENTS[0][1], HEAD_DIM
        )
    else:
        scores = dot_transposed(k, q)  # [N, M]
        dweights = dot_transposed(v, dout)  # [N, M]
    weights = tl.exp2(scores * scale_log2 - lse[None, :])  # [N, M]
    if MASKED:
        weights = tl.where(visible, weights, 0.0)
    if BOOL_MASK:
        seeing = tl.max(visible.to(tl.int32), axis=0) > 0  # [M]
        q = keep_rows(q, seeing)
        dout = keep_rows(dout, seeing)
    dv = dot_accumulate(weights, dout, dv)
    delta = tl.load(delta_base + rows, mask=rows < queries_left, other=0.0)  # [M]
    dscores = weights * (dweights - delta[None, :])  # [N, M]
    if MASKED:
        dscores = tl.where(visible, dscores, 0.0)
    return dot_accumulate(dscores, q, dk), dv


@triton.jit
def _key_gradient_range(
    dk, dv, k, v, first_queries, keys_left, begin, end, query_count,
    q_base, q_row, dout_base, dout_row, lse_base, delta_base, mask_base, mask_row, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, CHANNEL_LOOP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """(dk, dv) plus the queries [begin, end). MASKED: query i counts for the keys whose first_queries is at most i."""
    rows = tl.arange(0, BLOCK_M)
    for start in range(begin, end, BLOCK_M):
        q_tile = q_base + start * q_row
        dout_tile = dout_base + start * dout_row
        left = query_count - start
        if mask_base is not None:
            mask_tile = mask_base + start * mask_row
            visible = load_bool_tile(mask_tile, 1, mask_row, keys_left, left, BLOCK_N, BLOCK_M)
            if tl.max(tl.max(visible.to(tl.int32), axis=1), axis=0) > 0:
                dk, dv = _key_gradient_tile(
                    dk, dv, k, v, visible, left, q_tile, q_row, dout_tile, dout_row, lse_base + start,
                    delta_base + start, scale_log2, HEAD_DIM, SEGMENTS, CHANNEL_LOOP, BLOCK_M, BLOCK_N, MASKED, True,
                )  # fmt: skip
        else:
            # Rows past the last query must not count for a NaN key that no query sees.
            visible = (start + rows[None, :] >= first_queries[:, None]) & (rows[None, :] < left)  # [N, M]
            dk, dv = _key_gradient_tile(
                dk, dv, k, v, visible, left, q_tile, q_row, dout_tile, dout_row, lse_base + start,
                delta_base + start, scale_log2, HEAD_DIM, SEGMENTS, CHANNEL_LOOP, BLOCK_M, BLOCK_N, MASKED, False,
            )  # fmt: skip
    return dk, dv


@triton.jit
def _key_gradients(
    item, grid, q_view, k_view, v_view, dout_view, lse_view, delta_view,
    dk_view, dv_view, mask_view, cos_view, sin_view, tokens_per_frame, query_frame_offset, scale, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, STRIDE_UNIT: tl.constexpr, MASK_STRIDE_UNIT: tl.constexpr,
    FRAME_CAUSAL: tl.constexpr, CHANNEL_LOOP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk and dv of one item: BLOCK_N keys of one head; zeros from its last key up to the last that is written."""
    batch, head, first, row, query_count, key_count = work_item(item, grid, BLOCK_N)
    written = query_count
    num_tiles, _, _, key_len, key_lengths_ptr, cu_seqlens_ptr, _ = grid
    if cu_seqlens_ptr is None:
        written = key_len  # keys past a length get zero gradients
        row = (num_tiles - 1) * BLOCK_N - row  # the first keys have the most queries in a frame-causal mask
    if row < written:
        keys_left = key_count - row  # 0 or less: no query sees this tile
        token = first + row
        k_base, k_row = rows_at(k_view, batch, head, token, STRIDE_UNIT)
        v_base, v_row = rows_at(v_view, batch, head, token, STRIDE_UNIT)
        if CHANNEL_LOOP:
            k = (k_base, k_row, keys_left)
            v = (v_base, v_row, keys_left)
        else:
            k = load_segments(k_base, k_row, keys_left, BLOCK_N, HEAD_DIM, SEGMENTS)  # [N, D]
            v = load_segments(v_base, v_row, keys_left, BLOCK_N, HEAD_DIM, SEGMENTS)  # [N, D]

        q_base, q_row = rows_at(q_view, batch, head, first, STRIDE_UNIT)
        dout_base, dout_row = rows_at(dout_view, batch, head, first, STRIDE_UNIT)
        lse_base, _ = rows_at(lse_view, batch, head, first, 1)
        delta_base, _ = rows_at(delta_view, batch, head, first, 1)
        mask_base = None
        mask_row = 0
        if mask_view[0] is not None:
            mask_base, mask_row = rows_at(mask_view, batch, head, 0, MASK_STRIDE_UNIT)
            mask_base += row
        # Here, before the loops: after them, sm_120 code of head dim 80 spills.
        dk_base, dk_row = rows_at(dk_view, batch, head, token, STRIDE_UNIT)
        dv_base, dv_row = rows_at(dv_view, batch, head, token, STRIDE_UNIT)
        keys = row + tl.arange(0, BLOCK_N)  # [N]
        first_queries = first_query(keys, tokens_per_frame, query_frame_offset, FRAME_CAUSAL)  # [N]
        begin = 0
        end = tl.where(keys_left > 0, query_count, 0)
        dk = zero_segments(BLOCK_N, SEGMENTS)  # [N, D]
        dv = zero_segments(BLOCK_N, SEGMENTS)  # [N, D]
        if FRAME_CAUSAL or mask_view[0] is not None:
            masked_end = end
            if FRAME_CAUSAL:
                last = tl.minimum(row + BLOCK_N, key_count) - 1
                begin = first_query(row, tokens_per_frame, query_frame_offset, FRAME_CAUSAL) // BLOCK_M * BLOCK_M
                all_visible = first_query(last, tokens_per_frame, query_frame_offset, FRAME_CAUSAL)
                masked_end = tl.minimum(tl.cdiv(all_visible, BLOCK_M) * BLOCK_M, end)
            dk, dv = _key_gradient_range(
                dk, dv, k, v, first_queries, keys_left, begin, masked_end, query_count, q_base, q_row, dout_base, dout_row,
                lse_base, delta_base, mask_base, mask_row, scale_log2,
                HEAD_DIM, SEGMENTS, CHANNEL_LOOP, BLOCK_M, BLOCK_N, True,
            )  # fmt: skip
            begin = masked_end
        if mask_view[0] is None:
            dk, dv = _key_gradient_range(
                dk, dv, k, v, first_queries, keys_left, begin, end, query_count, q_base, q_row, dout_base, dout_row,
                lse_base, delta_base, None, 0, scale_log2,
                HEAD_DIM, SEGMENTS, CHANNEL_LOOP, BLOCK_M, BLOCK_N, False,
            )  # fmt: skip

        if key_lengths_ptr is not None:  # zero keys of weight exp2(0 - lse) summed into the rows past the length
            dk = keep_rows(dk, keys < key_count)
            dv = keep_rows(dv, keys < key_count)
        store_segments(dv_base, dv_row, written - row, dv, HEAD_DIM, SEGMENTS)
        dk = scale_segments(dk, scale)
        if cos_view[0] is not None:
            cos_base, cos_row = rows_at(cos_view, batch, head, token, STRIDE_UNIT)
            sin_base, sin_row = rows_at(sin_view, batch, head, token, STRIDE_UNIT)
            cos = load_segments(cos_base, cos_row, keys_left, BLOCK_N, HEAD_DIM, SEGMENTS)  # [N, D]
            sin = load_segments(sin_base, sin_row, keys_left, BLOCK_N, HEAD_DIM, SEGMENTS)  # [N, D]
            dk = unrotate_segments(dk, cos, sin)
        store_segments(dk_base, dk_row, written - row, dk, HEAD_DIM, SEGMENTS)


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    mask_ptr, key_lengths_ptr, cu_seqlens_ptr, cos_ptr, sin_ptr,
    q_stride_b: tl.int64, q_stride_h: tl.int64, q_stride_n: tl.int64,
    k_stride_b: tl.int64, k_stride_h: tl.int64, k_stride_n: tl.int64,
    v_stride_b: tl.int64, v_stride_h: tl.int64, v_stride_n: tl.int64,
    dout_stride_b: tl.int64, dout_stride_h: tl.int64, dout_stride_n: tl.int64,
    dk_stride_b: tl.int64, dk_stride_h: tl.int64, dk_stride_n: tl.int64,
    dv_stride_b: tl.int64, dv_stride_h: tl.int64, dv_stride_n: tl.int64,
    mask_stride_b: tl.int64, mask_stride_h: tl.int64, mask_stride_q: tl.int64,
    cos_stride_b: tl.int64, cos_stride_n: tl.int64, sin_stride_b: tl.int64, sin_stride_n: tl.int64,
    num_heads, query_len, key_len, num_tiles, num_sequences, tokens_per_frame, query_frame_offset, scale, scale_log2,
    HEAD_DIM: tl.constexpr, SEGMENTS: tl.constexpr, STRIDE_UNIT: tl.constexpr, MASK_STRIDE_UNIT: tl.constexpr,
    FRAME_CAUSAL: tl.constexpr, CHANNEL_LOOP: tl.constexpr, PERSISTENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk and dv for one tile of BLOCK_N keys of one head. Scores are held transposed, [N, M], so both sums are plain products."""
    q_view = (q_ptr, q_stride_b, q_stride_h, q_stride_n)
    k_view = (k_ptr, k_stride_b, k_stride_h, k_stride_n)
    v_view = (v_ptr, v_stride_b, v_stride_h, v_stride_n)
    dout_view = (dout_ptr, dout_stride_b, dout_stride_h, dout_stride_n)
    dk_view = (dk_ptr, dk_stride_b, dk_stride_h, dk_stride_n)
    dv_view = (dv_ptr, dv_stride_b, dv_stride_h, dv_stride_n)
    lse_view = (lse_ptr, num_heads.to(tl.int64) * query_len, query_len.to(tl.int64), 1)
    delta_view = (delta_ptr, lse_view[1], lse_view[2], 1)
    mask_view = (mask_ptr, mask_stride_b, mask_stride_h, mask_stride_q)
    cos_view = (cos_ptr, cos_stride_b, 0, cos_stride_n)
    sin_view = (sin_ptr, sin_stride_b, 0, sin_stride_n)
    grid = (num_tiles, num_heads, query_len, key_len, key_lengths_ptr, cu_seqlens_ptr, num_sequences)
    if PERSISTENT:
        for item in tl.range(tl.program_id(0), num_tiles * num_heads, tl.num_programs(0), disable_licm=True):
            _key_gradients(
                item, grid, q_view, k_view, v_view, dout_view,
            lse_view, delta_view, dk_view, dv_view, mask_view, cos_view, sin_view,
                tokens_per_frame, query_frame_offset, scale, scale_log2, HEAD_DIM, SEGMENTS, STRIDE_UNIT, MASK_STRIDE_UNIT,
                FRAME_CAUSAL, CHANNEL_LOOP, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    else:
        _key_gradients(
            tl.program_id(0), grid, q_view, k_view, v_view, dout_view,
            lse_view, delta_view, dk_view, dv_view, mask_view, cos_view, sin_view,
            tokens_per_frame, query_frame_offset, scale, scale_log2, HEAD_DIM, SEGMENTS, STRIDE_UNIT, MASK_STRIDE_UNIT,
            FRAME_CAUSAL, CHANNEL_LOOP, BLOCK_M, BLOCK_N,
        )  # fmt: skip
