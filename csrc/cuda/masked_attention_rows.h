// What four warps do with the query rows that they own, whichever instruction multiplies: rotate and hold them, hide scores, keep the
// online softmax, store results. Instructions come from a Machine: those of a GPU (device_machine.h), or their emulation, with
// which a test runs this very source on the host.
#pragma once

#include <cstdint>

#include "masked_attention_layout.h"
#include "masked_attention_rotate.h"

namespace jepa {
namespace {

constexpr float kLn2 = 0.6931471805599453f;
// How far, in powers of two, a row's maximum may rise before what was summed shrinks to it. Weights up to 2^8 are as exact as those up to
// 1, and far from the end of float16.
constexpr float kSlack = 8.0f;

template <typename Machine, typename Value, typename Shape>
struct AttentionRows {
  static constexpr int kKeyColumns = Shape::kKeys / 8, kRowTiles = Shape::kRowTiles;
  template <int kColumns>
  using Sums = float[kRowTiles][kColumns][4];  // 16 x 8 a tile: rows lane / 4 and lane / 4 + 8, two columns from 2 (lane % 4) each

  // Fragments of this warp's queries, which stay in registers.
  struct Queries {
    uint32_t steps[kRowTiles][Shape::kSteps][4];
    uint32_t tail[kRowTiles][4];  // the first two registers: 16 x 8
  };

  const MaskedAttentionCall& call;
  const BlockRange range;  // its row is the first of these
  const int thread, lane, warp_row;  // of the 128; first of this warp's queries, within the rows

  JEPA_DEVICE AttentionRows(const MaskedAttentionCall& call_, const BlockRange& range_)
      : call(call_),
        range(range_),
        thread(Machine::thread() % kAttentionThreads),
        lane(thread % 32),
        warp_row(thread / 32 * 16 * kRowTiles) {}

  // `further` rows below, a multiple of 8, chunks are exchanged alike: a constant distance, which an instruction holds by itself.
  JEPA_DEVICE static int element(int row, int chunk, int further = 0) {
    return head_element<Shape::kHeadDim>(row, chunk) + further * Shape::kHeadDim;
  }

  JEPA_DEVICE uint16_t* rows_of(const HeadRows& tensor, int row) const {
    return static_cast<uint16_t*>(tensor.data) + range.batch * tensor.batch_stride + range.head * tensor.head_stride +
           (static_cast<int64_t>(range.first) + row) * tensor.row_stride;
  }

  // The queries, rotated, into a tile of shared memory.
  JEPA_DEVICE void store_queries(uint16_t* tile) const {
    if (thread % Shape::kLanesPerRow >= Shape::kChunks) return;
    JEPA_ROLLED
    for (int row = thread / Shape::kLanesPerRow; row < Shape::kRows; row += kQueryLoads * Shape::kRowsPerPass)
      store_query_rows(tile, row);
  }

  // A thread's chunks of kQueryLoads rows from `first` on. Its loads are all under way before it waits for one: a block of few keys has
  // nothing else to hide their latency behind.
  static constexpr int kPasses = Shape::kRows / Shape::kRowsPerPass, kQueryLoads = kPasses < 4 * kRowTiles ? kPasses : 4 * kRowTiles;
  static_assert(kPasses % kQueryLoads == 0, "no row beyond the block's is stored");
  JEPA_DEVICE void store_query_rows(uint16_t* tile, int first) const {
    const int chunk = thread % Shape::kLanesPerRow, rows_left = range.query_count - range.row;
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
    uint16_t* const to = tile + element(first, chunk);
    JEPA_UNROLL
    for (int i = 0; i < kQueryLoads; ++i) {
      JEPA_UNROLL
      for (uint32_t& word : queries[i].word) word = (word & call.query_keep) ^ call.query_flip;
      *reinterpret_cast<Chunk*>(to + i * Shape::kRowsPerPass * Shape::kHeadDim) = queries[i];
    }
  }

  JEPA_DEVICE void load_queries(Queries& queries, const uint16_t* tile) const {
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

  // Nothing summed yet: zeros, relative to a maximum below all.
  JEPA_DEVICE static void begin(Sums<Shape::kSumTiles>& sums, float (&row_max)[kRowTiles][2], float (&row_sum)[kRowTiles][2]) {
    JEPA_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      JEPA_UNROLL
      for (int c = 0; c < Shape::kSumTiles; ++c)
        JEPA_UNROLL
        for (int i = 0; i < 4; ++i) sums[m][c][i] = 0.0f;
      JEPA_UNROLL
      for (int half = 0; half < 2; ++half) row_max[m][half] = bits_float(0xff800000u), row_sum[m][half] = 0.0f;
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

  // Online softmax in base 2: scores become weights relative to the row's maximum so far, or to an earlier one that is at most 2^kSlack
  // below: so the sums rarely need to shrink. Whether they do in any row of this warp, and by `decay`.
  JEPA_DEVICE bool weigh(Sums<kKeyColumns>& scores, float (&row_max)[kRowTiles][2], float (&row_sum)[kRowTiles][2],
                         float (&decay)[kRowTiles][2]) const {
    bool rises = false;
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
        const bool row_rises = top > row_max[m][half] + kSlack;
        const float new_max = row_rises ? top : row_max[m][half];
        rises = rises || row_rises;
        // A row that has seen no key yet would compute -inf - -inf.
        const float finite_max = new_max == bits_float(0xff800000u) ? 0.0f : new_max;
        decay[m][half] = Machine::power_of_2(row_max[m][half] - finite_max);
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
        row_sum[m][half] = row_sum[m][half] * decay[m][half] + sum;  // of this lane's columns; lanes are added at the end
      }
    return Machine::any(rises);
  }

  JEPA_DEVICE static void shrink(Sums<Shape::kSumTiles>& sums, const float (&decay)[kRowTiles][2]) {
    JEPA_UNROLL
    for (int m = 0; m < kRowTiles; ++m)
      JEPA_UNROLL
      for (int c = 0; c < Shape::kSumTiles; ++c)
        JEPA_UNROLL
        for (int i = 0; i < 4; ++i) sums[m][c][i] *= decay[m][i / 2];
  }

  // Two neighbouring tiles of weights, rounded, are the left fragment of a product over their 16 keys.
  JEPA_DEVICE static void fragment(uint32_t (&left)[4], const float (&weights)[kKeyColumns][4], int step) {
    JEPA_UNROLL
    for (int i = 0; i < 4; ++i)
      left[i] = Machine::template pair<Value>(weights[2 * step + i / 2][2 * (i % 2)], weights[2 * step + i / 2][2 * (i % 2) + 1]);
  }

  JEPA_DEVICE float* lse_row(int row) const {
    return call.lse + (static_cast<int64_t>(range.batch) * call.heads + range.head) * call.query_len + range.first + row;
  }

  // Divides by the sums and writes the result, by way of a tile of shared memory, so that 16 bytes of a row are stored at once.
  JEPA_DEVICE void store(uint16_t* tile, const Sums<Shape::kSumTiles>& sums, const float (&row_max)[kRowTiles][2],
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
          uint16_t* const to = tile + element(lane / 4, c, warp_row + 16 * m + 8 * half) + 2 * (lane % 4);
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
                          *reinterpret_cast<const Chunk*>(tile + element(row, chunk)));
    }
  }

  // Rows of the tokens that no sequence holds, by `threads` threads, from this block's first row on, a whole grid of blocks apart.
  JEPA_DEVICE void store_zeros(int block_rows, int threads, int tiles) const {
    for (int row = range.row; row < range.query_count; row += tiles * block_rows)
      for (int item = Machine::thread(); item < block_rows * Shape::kChunks; item += threads) {
        const int at = row + item / Shape::kChunks;
        if (at >= range.query_count) break;
        Machine::store_16(rows_of(call.out, at) + item % Shape::kChunks * kChunk, Chunk{});
        if (item % Shape::kChunks == 0) *lse_row(at) = bits_float(0xff800000u);
      }
  }
};

}  // namespace
}  // namespace jepa
