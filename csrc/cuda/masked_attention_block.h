// What a block of the attention forward does, thread by thread. Instructions come from a Machine: those of a GPU (DeviceMachine in
// masked_attention.cu), or their emulation, with which a test runs this very source on the host.
#pragma once

#include <cstdint>

#include "masked_attention_layout.h"
#include "masked_attention_rotate.h"

namespace jepa {
namespace {

constexpr float kLn2 = 0.6931471805599453f;

template <typename Machine, typename Value, typename Shape>
struct AttentionBlock {
  static constexpr int kKeyColumns = Shape::kKeys / 8, kRowTiles = Shape::kRowTiles;
  template <int kColumns>
  using Sums = float[kRowTiles][kColumns][4];  // 16 x 8 a tile: rows lane / 4 and lane / 4 + 8, two columns from 2 (lane % 4) each

  // Fragments of this warp's queries, which stay in registers.
  struct Queries {
    uint32_t steps[kRowTiles][Shape::kSteps][4];
    uint32_t tail[kRowTiles][4];  // the first two registers: 16 x 8
  };

  const MaskedAttentionCall& call;
  uint16_t* const shared;
  const BlockRange range;
  const int lane, warp_row;  // first of this warp's queries, within the block

  JEPA_DEVICE AttentionBlock(const MaskedAttentionCall& call_, uint16_t* shared_, const BlockRange& range_)
      : call(call_),
        shared(shared_),
        range(range_),
        lane(Machine::thread() % 32),
        warp_row(Machine::thread() / 32 * 16 * kRowTiles) {}

  // `further` rows below, a multiple of 8, chunks are exchanged alike: a constant distance, which an instruction holds by itself.
  JEPA_DEVICE static int element(int row, int chunk, int further = 0) {
    return head_element<Shape::kHeadDim>(row, chunk) + further * Shape::kHeadDim;
  }

  JEPA_DEVICE uint16_t* rows_of(const HeadRows& tensor, int row) const {
    return static_cast<uint16_t*>(tensor.data) + range.batch * tensor.batch_stride + range.head * tensor.head_stride +
           (static_cast<int64_t>(range.first) + row) * tensor.row_stride;
  }

  // This thread's first chunk of a tensor's tiles.
  JEPA_DEVICE const uint16_t* first_chunk(const HeadRows& tensor) const {
    return rows_of(tensor, Machine::thread() / Shape::kLanesPerRow) + Machine::thread() % Shape::kLanesPerRow * kChunk;
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

  // This block's queries, rotated, into the second stage, which the first keys do not need yet.
  JEPA_DEVICE void store_queries() const {
    if (Machine::thread() % Shape::kLanesPerRow >= Shape::kChunks) return;
    JEPA_ROLLED
    for (int row = Machine::thread() / Shape::kLanesPerRow; row < Shape::kRows; row += kQueryLoads * Shape::kRowsPerPass)
      store_query_rows(row);
  }

  // A thread's chunks of kQueryLoads rows from `first` on. Its loads are all under way before it waits for one: a block of few keys has
  // nothing else to hide their latency behind.
  static constexpr int kPasses = Shape::kRows / Shape::kRowsPerPass, kQueryLoads = kPasses < 4 * kRowTiles ? kPasses : 4 * kRowTiles;
  static_assert(kPasses % kQueryLoads == 0, "no row beyond the block's is stored");
  JEPA_DEVICE void store_query_rows(int first) const {
    const int chunk = Machine::thread() % Shape::kLanesPerRow, rows_left = range.query_count - range.row;
    const uint16_t* const from = rows_of(call.q, range.row) + chunk * kChunk;
    Chunk queries[kQueryLoads];
    JEPA_UNROLL
    for (int i = 0; i < kQueryLoads; ++i) {
      const int row = first + i * Shape::kRowsPerPass;
      queries[i] = row < rows_left ? Machine::load_16(from + row * call.q.row_stride) : Chunk{};
    }
    if (call.query_tables.cos != nullptr) {
      const int64_t table = range.batch * call.query_tables.batch_stride +
                            (static_cast<int64_t>(range.first) + range.row) * Shape::kHeadDim + chunk * kChunk;
      JEPA_UNROLL
      for (int i = 0; i < kQueryLoads; ++i) {
        const int row = first + i * Shape::kRowsPerPass, inside = row < rows_left ? row : rows_left - 1;
        queries[i] = rotated<Machine, Value>(queries[i], load_rotation<Machine>(call.query_tables, table + inside * Shape::kHeadDim));
      }
    }
    uint16_t* const to = shared + Shape::kStageElements + element(first, chunk);
    JEPA_UNROLL
    for (int i = 0; i < kQueryLoads; ++i) {
      JEPA_UNROLL
      for (uint32_t& word : queries[i].word) word = (word & call.query_keep) ^ call.query_flip;
      *reinterpret_cast<Chunk*>(to + i * Shape::kRowsPerPass * Shape::kHeadDim) = queries[i];
    }
  }

  JEPA_DEVICE void load_queries(Queries& queries) const {
    const uint16_t* const tile = shared + Shape::kStageElements;
    const MatrixPlace at = rows_first(lane);
    JEPA_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      JEPA_UNROLL
      for (int step = 0; step < Shape::kSteps; ++step)
        Machine::load_matrices(queries.steps[m][step], tile + element(at.row, 2 * step + at.chunk, warp_row + 16 * m));
      // Two matrices would do; the other two are the same again, and are not used.
      if constexpr (Shape::kTail)
        Machine::load_matrices(queries.tail[m], tile + element(at.row, 2 * Shape::kSteps, warp_row + 16 * m));
    }
  }

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

  JEPA_DEVICE int query_of(int m, int half) const { return range.row + warp_row + 16 * m + 8 * half + lane / 4; }

  // -inf where a query does not see a key.
  JEPA_DEVICE void hide(Sums<kKeyColumns>& scores, int first_key) const {
    JEPA_UNROLL
    for (int m = 0; m < kRowTiles; ++m)
      JEPA_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int limit = key_limit(call, range.key_count, query_of(m, half)) - first_key - 2 * (lane % 4);
        JEPA_UNROLL
        for (int n = 0; n < kKeyColumns; ++n)
          JEPA_UNROLL
          for (int i = 0; i < 2; ++i)
            if (8 * n + i >= limit) scores[m][n][2 * half + i] = bits_float(0xff800000u);
      }
  }

  // Online softmax in base 2: scores become weights relative to the new maximum, and what was summed before shrinks to it.
  JEPA_DEVICE void update(Sums<kKeyColumns>& scores, Sums<Shape::kColumnTiles>& sums, float (&row_max)[kRowTiles][2],
                          float (&row_sum)[kRowTiles][2]) const {
    JEPA_UNROLL
    for (int m = 0; m < kRowTiles; ++m)
      JEPA_UNROLL
      for (int half = 0; half < 2; ++half) {
        float top = scores[m][0][2 * half];
        JEPA_UNROLL
        for (int n = 0; n < kKeyColumns; ++n)
          JEPA_UNROLL
          for (int i = 0; i < 2; ++i) top = Machine::larger(top, scores[m][n][2 * half + i]);
        top = Machine::larger(top, Machine::exchange(top, 1));
        top = Machine::larger(top, Machine::exchange(top, 2)) * call.scale_log2;
        const float new_max = Machine::larger(row_max[m][half], top);
        // A row that has seen no key yet would compute -inf - -inf.
        const float finite_max = new_max == bits_float(0xff800000u) ? 0.0f : new_max;
        const float decay = Machine::power_of_2(row_max[m][half] - finite_max);
        row_max[m][half] = new_max;
        float sum = 0.0f;
        JEPA_UNROLL
        for (int n = 0; n < kKeyColumns; ++n)
          JEPA_UNROLL
          for (int i = 0; i < 2; ++i) {
            float& score = scores[m][n][2 * half + i];
            score = Machine::power_of_2(score * call.scale_log2 - finite_max);
            sum += score;
          }
        row_sum[m][half] = row_sum[m][half] * decay + sum;  // of this lane's columns; lanes are added at the end
        JEPA_UNROLL
        for (int c = 0; c < Shape::kColumnTiles; ++c)
          JEPA_UNROLL
          for (int i = 0; i < 2; ++i) sums[m][c][2 * half + i] *= decay;
      }
  }

  // sums += weights @ values. Two neighbouring tiles of scores, rounded, are the left fragment of a product over their 16 keys.
  JEPA_DEVICE void multiply_values(Sums<Shape::kColumnTiles>& sums, const Sums<kKeyColumns>& weights, const uint16_t* values) const {
    const MatrixPlace at = rows_first(lane);
    uint32_t tail[4];
    JEPA_UNROLL
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      uint32_t left[kRowTiles][4];
      JEPA_UNROLL
      for (int m = 0; m < kRowTiles; ++m)
        JEPA_UNROLL
        for (int i = 0; i < 4; ++i)
          left[m][i] = Machine::template pair<Value>(weights[m][2 * step + i / 2][2 * (i % 2)],
                                                     weights[m][2 * step + i / 2][2 * (i % 2) + 1]);
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

  JEPA_DEVICE float* lse_row(int row) const {
    return call.lse + (static_cast<int64_t>(range.batch) * call.heads + range.head) * call.query_len + range.first + row;
  }

  // Divides by the sums and writes the result, by way of shared memory so that 16 bytes of a row are stored at once.
  JEPA_DEVICE void store(const Sums<Shape::kColumnTiles>& sums, const float (&row_max)[kRowTiles][2],
                         const float (&row_sum)[kRowTiles][2]) const {
    JEPA_UNROLL
    for (int m = 0; m < kRowTiles; ++m)
      JEPA_UNROLL
      for (int half = 0; half < 2; ++half) {
        float sum = row_sum[m][half];
        sum += Machine::exchange(sum, 1);
        sum += Machine::exchange(sum, 2);
        // No visible key: the sum is 0, the output 0 and lse = -inf + log2(0) = -inf.
        const float inverse = sum == 0.0f ? 0.0f : Machine::reciprocal(sum);
        const int row = query_of(m, half);
        if (lane % 4 == 0 && row < range.query_count) *lse_row(row) = (row_max[m][half] + Machine::logarithm_2(sum)) * kLn2;
        JEPA_UNROLL
        for (int c = 0; c < Shape::kColumnTiles; ++c) {
          uint16_t* const to = shared + element(lane / 4, c, warp_row + 16 * m + 8 * half) + 2 * (lane % 4);
          *reinterpret_cast<uint32_t*>(to) =
              Machine::template pair<Value>(sums[m][c][2 * half] * inverse, sums[m][c][2 * half + 1] * inverse);
        }
      }
    Machine::synchronise_warp();
    const int chunk = lane % Shape::kLanesPerRow;
    if (chunk >= Shape::kChunks) return;
    JEPA_UNROLL
    for (int pass = 0; pass < 16 * kRowTiles / (32 / Shape::kLanesPerRow); ++pass) {
      const int row = warp_row + pass * (32 / Shape::kLanesPerRow) + lane / Shape::kLanesPerRow;
      if (range.row + row < range.query_count)
        Machine::store_16(rows_of(call.out, range.row + row) + chunk * kChunk,
                          *reinterpret_cast<const Chunk*>(shared + element(row, chunk)));
    }
  }

  JEPA_DEVICE void attend() const {
    const int last = (range.row + Shape::kRows < range.query_count ? range.row + Shape::kRows : range.query_count) - 1;
    const int end = key_limit(call, range.key_count, last), unmasked = key_limit(call, range.key_count, range.row);
    // Of this warp alone: it has nothing to do with keys beyond its own last query's limit, and none at all without queries.
    const int warp_first = range.row + warp_row, warp_last = warp_first + 16 * kRowTiles - 1;
    const int warp_end =
        warp_first < range.query_count ? key_limit(call, range.key_count, warp_last < last ? warp_last : last) : 0;
    const uint16_t *next_keys = first_chunk(call.k), *next_values = first_chunk(call.v);
    if (end > 0) copy_stage(0, next_keys, next_values, end);
    store_queries();
    Machine::synchronise();
    Queries queries;
    load_queries(queries);
    Sums<Shape::kColumnTiles> sums;
    float row_max[kRowTiles][2], row_sum[kRowTiles][2];
    JEPA_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      JEPA_UNROLL
      for (int c = 0; c < Shape::kColumnTiles; ++c)
        JEPA_UNROLL
        for (int i = 0; i < 4; ++i) sums[m][c][i] = 0.0f;
      JEPA_UNROLL
      for (int half = 0; half < 2; ++half) row_max[m][half] = bits_float(0xff800000u), row_sum[m][half] = 0.0f;
    }
    for (int key = 0, stage = 0; key < end; key += Shape::kKeys, stage ^= 1) {
      Machine::wait_for_copies();
      Machine::synchronise();  // this stage has arrived for all, and nobody reads the other one any more
      if (key + Shape::kKeys < end) copy_stage(stage ^ 1, next_keys, next_values, end - key - Shape::kKeys);
      if (key >= warp_end) continue;
      const uint16_t* const keys = shared + stage * Shape::kStageElements;
      Sums<kKeyColumns> scores;
      multiply_keys(scores, queries, keys);
      if (key + Shape::kKeys > unmasked) hide(scores, key);
      update(scores, sums, row_max, row_sum);
      multiply_values(sums, scores, keys + Shape::kTileElements);
    }
    Machine::synchronise();  // the stages take the results
    store(sums, row_max, row_sum);
  }

  // Rows of the tokens that no sequence holds, from this block's first on, a whole grid of blocks apart.
  JEPA_DEVICE void store_zeros(int tiles) const {
    for (int row = range.row; row < range.query_count; row += tiles * Shape::kRows)
      for (int item = Machine::thread(); item < Shape::kRows * Shape::kChunks; item += kAttentionThreads) {
        const int at = row + item / Shape::kChunks;
        if (at >= range.query_count) break;
        Machine::store_16(rows_of(call.out, at) + item % Shape::kChunks * kChunk, Chunk{});
        if (item % Shape::kChunks == 0) *lse_row(at) = bits_float(0xff800000u);
      }
  }
};

template <typename Machine, typename Value, typename Shape>
JEPA_DEVICE void attention_block(const MaskedAttentionCall& call, uint16_t* shared, int64_t block, int tiles) {
  const BlockRange range = block_range(call, block, tiles, Shape::kRows);
  if (range.row >= range.query_count) return;
  const AttentionBlock<Machine, Value, Shape> program(call, shared, range);
  if (range.leftover)
    program.store_zeros(tiles);
  else
    program.attend();
}

}  // namespace
}  // namespace jepa
