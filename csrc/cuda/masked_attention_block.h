// What a block of the attention forward does on every GPU from compute capability 8.0, thread by thread: keys and values arrive by
// asynchronous copies, warps multiply. See masked_attention_rows.h for the Machine.
#pragma once

#include <cstdint>

#include "masked_attention_rows.h"

namespace jepa {
namespace {

template <typename Machine, typename Value, typename Shape>
struct AttentionBlock {
  using Rows = AttentionRows<Machine, Value, Shape>;
  using Queries = typename Rows::Queries;
  template <int kColumns>
  using Sums = typename Rows::template Sums<kColumns>;
  static constexpr int kKeyColumns = Rows::kKeyColumns, kRowTiles = Rows::kRowTiles;

  const MaskedAttentionCall& call;
  uint16_t* const shared;
  const BlockRange range;
  const Rows rows;
  const int lane;

  JEPA_DEVICE AttentionBlock(const MaskedAttentionCall& call_, uint16_t* shared_, const BlockRange& range_)
      : call(call_), shared(shared_), range(range_), rows(call_, range_), lane(rows.lane) {}

  JEPA_DEVICE static int element(int row, int chunk, int further = 0) { return Rows::element(row, chunk, further); }

  // This thread's first chunk of a tensor's tiles.
  JEPA_DEVICE const uint16_t* first_chunk(const HeadRows& tensor) const {
    return rows.rows_of(tensor, Machine::thread() / Shape::kLanesPerRow) + Machine::thread() % Shape::kLanesPerRow * kChunk;
  }

  // The next keys and values into a stage. Rows from `rows_left` on become zeros: what they hold must not matter.
  JEPA_DEVICE void copy_stage(int stage, const uint16_t*& keys, const uint16_t*& values, int rows_left) const {
    uint16_t* const tile = shared + stage * Shape::kStageElements;
    copy_tile(tile, keys, call.k.row_stride, rows_left);
    copy_tile(tile + Shape::kTileElements, values, call.v.row_stride, rows_left);
  }

  JEPA_DEVICE static void copy_tile(uint16_t* tile, const uint16_t*& from, int64_t stride, int rows_left) {
    const int chunk = Machine::thread() % Shape::kLanesPerRow, first = Machine::thread() / Shape::kLanesPerRow;
    JEPA_UNROLL
    for (int pass = 0; pass < Shape::kKeys / Shape::kRowsPerPass; ++pass, from += Shape::kRowsPerPass * stride) {
      const int further = pass * Shape::kRowsPerPass;
      if (chunk < Shape::kChunks) Machine::copy_async(tile + element(first, chunk, further), from, first + further < rows_left);
    }
  }

  // Queries pass through the second stage, which the first keys do not need yet.
  JEPA_DEVICE uint16_t* queries_tile() const { return shared + Shape::kStageElements; }

  // scores = queries @ keys^T
  JEPA_DEVICE void multiply_keys(Sums<kKeyColumns>& scores, const Queries& queries, const uint16_t* keys) const {
    JEPA_UNROLL
    for (int m = 0; m < kRowTiles; ++m)
      JEPA_UNROLL
      for (int n = 0; n < kKeyColumns; ++n)
        JEPA_UNROLL
        for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
    const MatrixPlace at = channels_first(lane);
    JEPA_UNROLL
    for (int step = 0; step < Shape::kSteps; ++step)
      JEPA_UNROLL
      for (int n = 0; n < kKeyColumns / 2; ++n) {
        uint32_t right[4];
        Machine::load_matrices(right, keys + element(at.row, 2 * step + at.chunk, 16 * n));
        JEPA_UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
          Machine::template multiply_add<Value>(scores[m][2 * n], queries.steps[m][step], right[0], right[1]);
          Machine::template multiply_add<Value>(scores[m][2 * n + 1], queries.steps[m][step], right[2], right[3]);
        }
      }
    if constexpr (Shape::kTail) {
      JEPA_UNROLL
      for (int n = 0; n < kKeyColumns / 4; ++n) {
        uint32_t right[4];  // of 32 keys
        Machine::load_matrices(right, keys + element(lane, 2 * Shape::kSteps, 32 * n));
        JEPA_UNROLL
        for (int m = 0; m < kRowTiles; ++m)
          JEPA_UNROLL
          for (int i = 0; i < 4; ++i) {
            const uint32_t left[2] = {queries.tail[m][0], queries.tail[m][1]};
            Machine::template multiply_add<Value>(scores[m][4 * n + i], left, right[i]);
          }
      }
    }
  }

  // sums += weights @ values
  JEPA_DEVICE void multiply_values(Sums<Shape::kSumTiles>& sums, const Sums<kKeyColumns>& weights, const uint16_t* values) const {
    const MatrixPlace at = rows_first(lane);
    uint32_t tail[4];
    JEPA_UNROLL
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      uint32_t left[kRowTiles][4];
      JEPA_UNROLL
      for (int m = 0; m < kRowTiles; ++m) Rows::fragment(left[m], weights[m], step);
      JEPA_UNROLL
      for (int c = 0; c < Shape::kSteps; ++c) {
        uint32_t right[4];
        Machine::load_transposed_matrices(right, values + element(at.row, 2 * c + at.chunk, 16 * step));
        JEPA_UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
          Machine::template multiply_add<Value>(sums[m][2 * c], left[m], right[0], right[1]);
          Machine::template multiply_add<Value>(sums[m][2 * c + 1], left[m], right[2], right[3]);
        }
      }
      if constexpr (Shape::kTail) {
        // The last eight channels of 32 keys: enough for two steps.
        if (step % 2 == 0) Machine::load_transposed_matrices(tail, values + element(lane, 2 * Shape::kSteps, 16 * step));
        JEPA_UNROLL
        for (int m = 0; m < kRowTiles; ++m)
          Machine::template multiply_add<Value>(sums[m][2 * Shape::kSteps], left[m], tail[2 * (step % 2)], tail[2 * (step % 2) + 1]);
      }
    }
  }

  JEPA_DEVICE void attend() const {
    const int last = (range.row + Shape::kRows < range.query_count ? range.row + Shape::kRows : range.query_count) - 1;
    const int end = key_limit(call, range.key_count, last), unmasked = key_limit(call, range.key_count, range.row);
    // Of this warp alone: it has nothing to do with keys beyond its own last query's limit, and none at all without queries.
    const int warp_first = range.row + rows.warp_row, warp_last = warp_first + 16 * kRowTiles - 1;
    const int warp_end =
        warp_first < range.query_count ? key_limit(call, range.key_count, warp_last < last ? warp_last : last) : 0;
    const uint16_t *next_keys = first_chunk(call.k), *next_values = first_chunk(call.v);
    if (end > 0) copy_stage(0, next_keys, next_values, end);
    rows.store_queries(queries_tile());
    Machine::synchronise();
    Queries queries;
    rows.load_queries(queries, queries_tile());
    Sums<Shape::kSumTiles> sums;
    float row_max[kRowTiles][2], row_sum[kRowTiles][2], decay[kRowTiles][2];
    rows.begin(sums, row_max, row_sum);
    for (int key = 0, stage = 0; key < end; key += Shape::kKeys, stage ^= 1) {
      Machine::wait_for_copies();
      Machine::synchronise();  // this stage has arrived for all, and nobody reads the other one any more
      if (key + Shape::kKeys < end) copy_stage(stage ^ 1, next_keys, next_values, end - key - Shape::kKeys);
      if (key >= warp_end) continue;
      const uint16_t* const keys = shared + stage * Shape::kStageElements;
      Sums<kKeyColumns> scores;
      multiply_keys(scores, queries, keys);
      if (key + Shape::kKeys > unmasked) rows.hide(scores, key);
      if (rows.weigh(scores, row_max, row_sum, decay)) rows.shrink(sums, decay);
      multiply_values(sums, scores, keys + Shape::kTileElements);
    }
    Machine::synchronise();  // the stages take the results
    rows.store(shared, sums, row_max, row_sum);
  }
};

template <typename Machine, typename Value, typename Shape>
JEPA_DEVICE void attention_block(const MaskedAttentionCall& call, uint16_t* shared, int64_t block, int tiles) {
  const BlockRange range = block_range(call, block, tiles, Shape::kRows);
  if (range.row >= range.query_count) return;
  const AttentionBlock<Machine, Value, Shape> program(call, shared, range);
  if (range.leftover)
    program.rows.store_zeros(Shape::kRows, kAttentionThreads, tiles);
  else
    program.attend();
}

}  // namespace
}  // namespace jepa
