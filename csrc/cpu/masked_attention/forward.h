// Forward: for a block of queries, scores are computed transposed (rows are keys, lanes are queries), so that the softmax is
// elementwise over lanes and no head dim wastes a lane. Keys go by in chunks: scores of a chunk, its maximum, exponentials, values.
#pragma once

#include <cmath>

#include "layout.h"
#include "mask_tiles.h"
#include "micro_kernel.h"
#include "pack.h"

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

constexpr int64_t kChunk = 256;  // keys whose scores are held at once

template <class A>
struct ForwardPacked {
  typename A::Element* keys;    // [key][channel]
  typename A::Element* values;  // panels

  int64_t bytes;
  ForwardPacked(const Layout<A>& layout, char* base) {
    Bump bump(base);
    keys = bump.take<typename A::Element>(layout.key_row_elements());
    values = bump.take<typename A::Element>(layout.panel_elements());
    bytes = bump.used();
  }
};

template <class A>
struct ForwardScratch {
  using E = typename A::Element;
  static constexpr int64_t kWidth = kBlockVectors * A::kLanes;
  E* rows;           // one vector's worth of queries, padded
  E* queries;        // transposed
  E* probabilities;  // [key / kPack][lane] units
  float* output;     // [channel][lane]
  float* transposed;
  float* scores;     // [key][lane], of a chunk
  float* partial;    // of one tile
  uint32_t* visible;
  int32_t* limits;
  float *highest, *reference, *total;  // a lane each
  float* weight;             // the sum of the probabilities as rounded: it divides the output, so that their errors partly cancel
  Tile* tiles;
  uint8_t *all, *any;

  int64_t bytes;
  ForwardScratch(const Layout<A>& layout, char* base) {
    Bump bump(base);
    rows = bump.take<E>(larger(A::kLanes, 8) * layout.unit_stride * A::kPack);
    queries = bump.take<E>(layout.unit_stride * kWidth * A::kPack);
    probabilities = bump.take<E>(kChunk * kWidth);
    output = bump.take<float>(layout.lane_dim * kWidth);
    transposed = bump.take<float>(A::kLanes * layout.lane_dim);
    scores = bump.take<float>(kChunk * kWidth);
    partial = bump.take<float>(kTileKeys * kWidth);
    visible = bump.take<uint32_t>(kTileKeys * kWidth);
    limits = bump.take<int32_t>(kWidth);
    highest = bump.take<float>(kWidth);
    reference = bump.take<float>(kWidth);
    total = bump.take<float>(kWidth);
    weight = bump.take<float>(kWidth);
    tiles = bump.take<Tile>(kChunk / kTileKeys);
    all = bump.take<uint8_t>(kChunk);
    any = bump.take<uint8_t>(kChunk);
    bytes = bump.used();
  }
};

// Keys [key_begin, key_end), both multiples of 8 except for the last: rows past p.keys become zeros.
template <class A, typename T>
bool forward_pack(const AttentionProblem& p, char* packed_base, int64_t key_begin, int64_t key_end) {
  using E = typename A::Element;
  const Layout<A> layout(p);
  const ForwardPacked<A> packed(layout, packed_base);
  const Rotation rotation = key_rotation(p);
  constexpr int64_t kWidth = kMaxHeadDim + A::kRows;
  E rows[8 * kWidth];
  clear(rows, 8 * kWidth);
  bool finite = true;
  for (int64_t first = key_begin; first < key_end; first += 8) {
    for (int64_t r = 0; r < 8; ++r) {
      E* key = packed.keys + (first + r) * p.dim;
      prefetch_row<T>(p.k, first + r + kPrefetchRows, key_end, p.dim);
      prefetch_row<T>(p.v, first + r + kPrefetchRows, key_end, p.dim);
      if (first + r < p.keys) {
        pack_row<A, T>(p.k, rotation, first + r, p.dim, key);
        pack_row<A, T>(p.v, Rotation{}, first + r, p.dim, rows + r * kWidth);
        finite = finite && (!p.is_masked() || row_is_finite(rows + r * kWidth, p.dim));
      } else {
        clear(key, p.dim);
        clear(rows + r * kWidth, p.dim);
      }
    }
    pack_panels<A>(rows, kWidth, layout, first, packed.values);
  }
  return finite;
}

template <class A, typename T, int Vectors>
struct ForwardBlock {
  using E = typename A::Element;
  using Vec = typename A::Vec;
  static constexpr int64_t kWidth = Vectors * A::kLanes;

  const AttentionProblem& p;
  const Layout<A>& layout;
  const ForwardPacked<A>& packed;
  const ForwardScratch<A>& scratch;
  int64_t first_query;
  float scale;  // in the unit of A::exponential

  void run() {
    const int64_t end_query = smaller(first_query + kWidth, p.queries);
    load_queries();
    fill_limits(p, first_query, kWidth, scratch.limits);
    clear(scratch.output, layout.lane_dim * kWidth);
    for (int64_t lane = 0; lane < kWidth; ++lane) {
      scratch.reference[lane] = -INFINITY;
      scratch.total[lane] = 0.0f;
      scratch.weight[lane] = 0.0f;
    }
    const int64_t limit = p.key_limit(end_query - 1);
    for (int64_t chunk = 0; chunk < limit; chunk += kChunk) {
      const int64_t count = smaller(kChunk, limit - chunk);
      classify_tiles(p, first_query, end_query, chunk, chunk + count, scratch.tiles, scratch.all, scratch.any);
      score_chunk(chunk, count);
      raise_references();
      const int64_t tiles = (count + kTileKeys - 1) / kTileKeys;
      for (int64_t begin = 0, end; begin < tiles; begin = end + 1) {  // runs of tiles that are not empty
        for (end = begin; end < tiles && scratch.tiles[end] != Tile::kEmpty;) ++end;
        if (begin == end) continue;
        for (int v = 0; v < Vectors; ++v) exponentiate(v, begin * kTileKeys, end * kTileKeys);
        multiply_values(chunk, begin * kTileKeys, end * kTileKeys);
      }
    }
    write(end_query);
  }

  void load_queries() {
    const Rotation rotation = query_rotation(p);
    const int64_t stride = layout.unit_stride * A::kPack;
    clear(scratch.rows, A::kLanes * stride);
    for (int v = 0; v < Vectors; ++v) {
      const int64_t first = first_query + v * A::kLanes;
      E* const to = scratch.queries + v * A::kLanes * A::kPack;
      for (int64_t r = 0; r < A::kLanes; ++r) prefetch_row<T>(p.q, first + r + kPrefetchRows, p.queries, p.dim);
      if constexpr (std::is_same_v<T, E>) {
        // Whole vectors of untouched rows need no copy.
        if (rotation.cosine == nullptr && first + A::kLanes <= p.queries && layout.unit_stride == layout.units &&
            p.q.stride % A::kPack == 0) {
          pack_transposed<A>(reinterpret_cast<const E*>(p.q.data) + first * p.q.stride, p.q.stride, layout, kWidth, to);
          continue;
        }
      }
      for (int64_t r = 0; r < A::kLanes; ++r) {
        if (first + r < p.queries)
          pack_row<A, T>(p.q, rotation, first + r, p.dim, scratch.rows + r * stride);
        else
          clear(scratch.rows + r * stride, p.dim);
      }
      pack_transposed<A>(scratch.rows, stride, layout, kWidth, to);
    }
  }

  void score_chunk(int64_t chunk, int64_t count) const {
    for (int64_t lane = 0; lane < kWidth; ++lane) scratch.highest[lane] = -INFINITY;
    for (int64_t key = 0; key < count; key += kTileKeys) {
      const Tile tile = scratch.tiles[key / kTileKeys];
      if (tile == Tile::kEmpty) continue;
      if (tile == Tile::kPartial) build_tile_mask(p, scratch.limits, first_query, kWidth, chunk + key, scratch.visible);
      for (int64_t part = 0; part < kTileKeys; part += A::kRows) {
        if (tile == Tile::kPartial)
          score<true>(chunk, key + part, part);
        else
          score<false>(chunk, key + part, part);
      }
    }
  }

  // Scaled scores of one register tile, and their maximum.
  template <bool Masked>
  [[gnu::noinline]] void score(int64_t chunk, int64_t row, int64_t part) const {
    Vec sum[A::kRows][Vectors];
    dot_tile<A, Vectors>(sum, packed.keys + (chunk + row) * p.dim, p.dim, scratch.queries, layout.units, scratch.partial);
    const Vec factor = A::set(scale);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      Vec highest = A::load(scratch.highest + v * A::kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < A::kRows; ++r) {
        Vec scaled = sum[r][v] * factor;
        if constexpr (Masked)
          scaled = A::select(A::load_mask(scratch.visible + (part + r) * kWidth + v * A::kLanes), scaled, A::set(-INFINITY));
        A::store(scratch.scores + (row + r) * kWidth + v * A::kLanes, scaled);
        highest = A::max(highest, scaled);
      }
      A::store(scratch.highest + v * A::kLanes, highest);
    }
  }

  // The reference of a query's exponents is its highest score so far: its probability is exactly 1, without rounding.
  void raise_references() const {
    bool rescale = false;
    for (int v = 0; v < Vectors; ++v) {
      float* reference = scratch.reference + v * A::kLanes;
      const Vec before = A::load(reference), after = A::max(before, A::load(scratch.highest + v * A::kLanes));
      A::store(reference, after);
      // 1 where nothing was accumulated yet or nothing changes; -inf - -inf is a NaN that must not get in
      const Vec factor = A::select(before == after, A::set(1.0f), A::exponential(before - after));
      A::store(scratch.highest + v * A::kLanes, factor);
      rescale = rescale || A::any_greater(A::set(1.0f) - factor, 0.0f);
    }
    if (!rescale) return;
    for (int v = 0; v < Vectors; ++v) {
      const Vec factor = A::load(scratch.highest + v * A::kLanes);
      float *total = scratch.total + v * A::kLanes, *weight = scratch.weight + v * A::kLanes;
      A::store(total, A::load(total) * factor);
      A::store(weight, A::load(weight) * factor);
      for (int c = 0; c < p.dim; ++c) {
        float* place = scratch.output + c * kWidth + v * A::kLanes;
        A::store(place, A::load(place) * factor);
      }
    }
  }

  // Probabilities of rows [begin, end) of the chunk, and their sums.
  [[gnu::noinline]] void exponentiate(int v, int64_t begin, int64_t end) const {
    const Vec reference = A::load(scratch.reference + v * A::kLanes);
    const Vec finite = A::select(reference == A::set(-INFINITY), A::zero(), reference);
    Vec total = A::load(scratch.total + v * A::kLanes), weight = A::load(scratch.weight + v * A::kLanes);
    const float* scores = scratch.scores + begin * kWidth + v * A::kLanes;
    for (int64_t row = begin; row < end; row += kTileKeys) {
#pragma GCC unroll 4
      for (int r = 0; r < kTileKeys; r += 2) {
        const Vec x = A::exponential(A::load(scores) - finite), y = A::exponential(A::load(scores + kWidth) - finite);
        total = total + (x + y);
        weight = store_probabilities(row + r, v, x, y, weight);
        scores += 2 * kWidth;
      }
    }
    A::store(scratch.total + v * A::kLanes, total);
    A::store(scratch.weight + v * A::kLanes, weight);
  }

  // Rows row and row + 1 of the chunk's probabilities. Returns `weight` plus what was stored.
  [[gnu::always_inline]] Vec store_probabilities(int64_t row, int v, Vec x, Vec y, Vec weight) const {
    if constexpr (A::kPack == 2) {
      return A::dot(weight, A::store_unit_pair(scratch.probabilities + row * kWidth + v * A::kLanes * 2, x, y), A::unit_of_ones());
    } else {
      A::store(scratch.probabilities + row * kWidth + v * A::kLanes, x);
      A::store(scratch.probabilities + (row + 1) * kWidth + v * A::kLanes, y);
      return weight + (x + y);
    }
  }

  // output += V^T P over rows [begin, end) of the chunk.
  void multiply_values(int64_t chunk, int64_t begin, int64_t end) const {
    for (int64_t panel = 0; panel < layout.row_panels; ++panel)
      add_product<A, Vectors>(scratch.output + panel * A::kRows * kWidth, kWidth,
                              packed.values + (panel * layout.keys + chunk + begin) * A::kRows, A::kPack, A::kRows * A::kPack,
                              scratch.probabilities + begin * kWidth, kWidth * A::kPack, (end - begin) / A::kPack);
  }

  void write(int64_t end_query) {
    for (int v = 0; v < Vectors; ++v) {
      for (int64_t c = 0; c < layout.lane_dim; c += A::kLanes)
        A::transpose(scratch.output + c * kWidth + v * A::kLanes, kWidth, scratch.transposed + c, layout.lane_dim);
      const int64_t first = first_query + v * A::kLanes;
      for (int64_t query = first; query < smaller(first + A::kLanes, end_query); ++query) {
        const float total = scratch.total[query - first_query], reference = scratch.reference[query - first_query];
        const float weight = scratch.weight[query - first_query], inverse = weight == 0.0f ? 0.0f : 1.0f / weight;
        write_row<A, T>(scratch.transposed + (query - first) * layout.lane_dim, inverse, p.out, query, p.dim);
        p.lse[query * p.lse_stride] = total == 0.0f ? -INFINITY : reference / A::kLogBase + std::log(total);
      }
    }
  }
};

template <class A, typename T>
void forward_block(const AttentionProblem& p, const char* packed_base, int64_t index, char* scratch_base) {
  const Layout<A> layout(p);
  const ForwardPacked<A> packed(layout, const_cast<char*>(packed_base));
  const ForwardScratch<A> scratch(layout, scratch_base);
  const QueryBlock block = query_block(layout.vectors, index);
  const int64_t first = block.first_vector * A::kLanes;
  const float scale = p.scale * A::kLogBase;
  if (block.vectors == 3)
    ForwardBlock<A, T, 3>{p, layout, packed, scratch, first, scale}.run();
  else if (block.vectors == 2)
    ForwardBlock<A, T, 2>{p, layout, packed, scratch, first, scale}.run();
  else
    ForwardBlock<A, T, 1>{p, layout, packed, scratch, first, scale}.run();
}

}  // namespace
}  // namespace jepa
