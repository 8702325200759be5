// Backward: probabilities are recomputed from the log-sum-exp, tile by tile and transposed as in forward. For a block of keys, dk and
// dv stay in scratch while all query blocks pass; dq is accumulated transposed over key blocks. Every sum has one fixed order.
#pragma once

#include <cmath>

#include "forward.h"

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

template <class A>
struct BackwardPacked {
  using E = typename A::Element;
  E *keys, *values;         // [key][channel]
  E* key_panels;            // pairs of keys, for dq
  E *queries, *gradients;   // a query block each: [unit][lane]
  E *query_pairs, *gradient_pairs;  // [query / kPack][channel] units, for dk and dv
  float *lse, *delta;  // a query each

  int64_t bytes;
  BackwardPacked(const Layout<A>& layout, char* base) {
    Bump bump(base);
    const int64_t query_rows = layout.vectors * A::kLanes;
    keys = bump.take<E>(layout.key_row_elements());
    values = bump.take<E>(layout.key_row_elements());
    key_panels = bump.take<E>(layout.panel_elements());
    queries = bump.take<E>(query_rows * layout.unit_stride * A::kPack);
    gradients = bump.take<E>(query_rows * layout.unit_stride * A::kPack);
    query_pairs = bump.take<E>(query_rows * layout.lane_dim);
    gradient_pairs = bump.take<E>(query_rows * layout.lane_dim);
    lse = bump.take<float>(query_rows);
    delta = bump.take<float>(query_rows);
    bytes = bump.used();
  }
};

template <class A>
struct BackwardScratch {
  using E = typename A::Element;
  static constexpr int64_t kWidth = kBlockVectors * A::kLanes;
  E* rows;  // a vector's worth of rows, padded
  E* probabilities;      // [key][query]
  E* score_gradients;    // [key][query]
  E* score_gradient_pairs;  // [key / kPack][query] units
  float* tile;           // one tile of probabilities
  float* partial;
  float *key_gradient, *value_gradient;  // [key][channel]
  float* transposed;
  uint32_t* visible;
  int32_t* limits;
  Tile* tiles;
  uint8_t *all, *any;

  int64_t bytes;
  BackwardScratch(const Layout<A>& layout, char* base) {
    Bump bump(base);
    rows = bump.take<E>(larger(A::kLanes, 8) * row_stride(layout));
    probabilities = bump.take<E>(kKeyBlock * kWidth);
    score_gradients = bump.take<E>(kKeyBlock * kWidth);
    score_gradient_pairs = bump.take<E>(kKeyBlock * kWidth);
    tile = bump.take<float>(kTileKeys * kWidth);
    partial = bump.take<float>(kTileKeys * kWidth);
    key_gradient = bump.take<float>(kKeyBlock * layout.lane_dim);
    value_gradient = bump.take<float>(kKeyBlock * layout.lane_dim);
    transposed = bump.take<float>(A::kLanes * layout.lane_dim);
    visible = bump.take<uint32_t>(kTileKeys * kWidth);
    limits = bump.take<int32_t>(kWidth);
    tiles = bump.take<Tile>(kKeyBlock / kTileKeys);
    all = bump.take<uint8_t>(kKeyBlock);
    any = bump.take<uint8_t>(kKeyBlock);
    bytes = bump.used();
  }

  static int64_t row_stride(const Layout<A>& layout) {
    return larger(larger(layout.unit_stride * A::kPack, layout.lane_dim), layout.row_panels * A::kRows);
  }
};

template <class A, typename T>
void backward_pack_keys(const AttentionProblem& p, char* packed_base, int64_t key_begin, int64_t key_end, char* scratch_base) {
  const Layout<A> layout(p);
  const BackwardPacked<A> packed(layout, packed_base);
  const BackwardScratch<A> scratch(layout, scratch_base);
  const int64_t stride = BackwardScratch<A>::row_stride(layout);
  clear(scratch.rows, 8 * stride);
  for (int64_t first = key_begin; first < key_end; first += 8) {
    for (int64_t r = 0; r < 8; ++r) {
      const int64_t key = first + r;
      prefetch_row<T>(p.k, key + kPrefetchRows, key_end, p.dim);
      prefetch_row<T>(p.v, key + kPrefetchRows, key_end, p.dim);
      auto* row = scratch.rows + r * stride;
      if (key < p.keys) {
        pack_row<A, T>(p.k, key_rotation(p), key, p.dim, row);
        pack_row<A, T>(p.v, Rotation{}, key, p.dim, packed.values + key * p.dim);
      } else {
        clear(row, p.dim);
        clear(packed.values + key * p.dim, p.dim);
      }
      memcpy(packed.keys + key * p.dim, row, sizeof *row * static_cast<size_t>(p.dim));
    }
    pack_panels<A>(scratch.rows, stride, layout, first, packed.key_panels);
  }
}

// One vector's worth of rows into the transposed and the paired layout.
template <class A, typename T>
void pack_query_side(const AttentionProblem& p, const Layout<A>& layout, const Rows& source, const Rotation& rotation, int64_t first,
                     int64_t width, typename A::Element* rows, typename A::Element* transposed, typename A::Element* pairs) {
  const int64_t stride = BackwardScratch<A>::row_stride(layout);
  for (int64_t r = 0; r < A::kLanes; ++r) {
    prefetch_row<T>(source, first + r + kPrefetchRows, p.queries, p.dim);
    if (first + r < p.queries)
      pack_row<A, T>(source, rotation, first + r, p.dim, rows + r * stride);
    else
      clear(rows + r * stride, p.dim);
  }
  pack_transposed<A>(rows, stride, layout, width, transposed);
  for (int64_t r = 0; r < A::kLanes; r += A::kPack) interleave(rows + r * stride, stride, pairs + r * layout.lane_dim, layout.lane_dim);
}

// A fully masked query gets lse = +inf here: its probabilities come out as zero.
template <class A, typename T>
void backward_pack_queries(const AttentionProblem& p, char* packed_base, int64_t index, char* scratch_base) {
  const Layout<A> layout(p);
  const BackwardPacked<A> packed(layout, packed_base);
  const BackwardScratch<A> scratch(layout, scratch_base);
  const QueryBlock block = query_block(layout.vectors, index);
  const int64_t first = block.first_vector * A::kLanes, width = block.vectors * A::kLanes;
  clear(scratch.rows, A::kLanes * BackwardScratch<A>::row_stride(layout));
  for (int v = 0; v < block.vectors; ++v) {
    const int64_t row = first + v * A::kLanes, lane = v * A::kLanes * A::kPack;
    const int64_t offset = first * layout.unit_stride * A::kPack + lane;
    pack_query_side<A, T>(p, layout, p.q, query_rotation(p), row, width, scratch.rows, packed.queries + offset,
                          packed.query_pairs + row * layout.lane_dim);
    pack_query_side<A, T>(p, layout, p.dout, Rotation{}, row, width, scratch.rows, packed.gradients + offset,
                          packed.gradient_pairs + row * layout.lane_dim);
  }
  for (int64_t query = first; query < first + width; ++query) {
    float lse = -INFINITY, delta = 0.0f;
    if (query < p.queries) {
      lse = p.lse[query * p.lse_stride];
      if (lse != -INFINITY) {
        const T* dout = reinterpret_cast<const T*>(p.dout.data) + query * p.dout.stride;
        const T* out = reinterpret_cast<const T*>(p.out.data) + query * p.out.stride;
        for (int c = 0; c < p.dim; ++c) delta += to_float(dout[c]) * to_float(out[c]);
      }
    }
    packed.lse[query] = lse == -INFINITY ? INFINITY : lse * A::kLogBase;
    packed.delta[query] = delta;
  }
}

template <class A, int Vectors>
struct BackwardTile {
  using E = typename A::Element;
  using Vec = typename A::Vec;
  static constexpr int64_t kWidth = Vectors * A::kLanes;

  const AttentionProblem& p;
  const Layout<A>& layout;
  const BackwardPacked<A>& packed;
  const BackwardScratch<A>& scratch;
  int64_t first_query;
  float scale;  // in the unit of A::exponential

  const E* queries() const { return packed.queries + first_query * layout.unit_stride * A::kPack; }
  const E* gradients() const { return packed.gradients + first_query * layout.unit_stride * A::kPack; }

  // Probabilities and score gradients of 8 keys, to rows [row, row + 8) of the scratch.
  void run(int64_t key, int64_t row, Tile tile) {
    if (tile == Tile::kEmpty) {
      clear(scratch.probabilities + row * kWidth, kTileKeys * kWidth);
      clear(scratch.score_gradients + row * kWidth, kTileKeys * kWidth);
      clear(scratch.score_gradient_pairs + row * kWidth, kTileKeys * kWidth);
      return;
    }
    if (tile == Tile::kPartial) build_tile_mask(p, scratch.limits, first_query, kWidth, key, scratch.visible);
    for (int64_t part = 0; part < kTileKeys; part += A::kRows) {
      if (tile == Tile::kPartial)
        compute<true>(key + part, row + part, part);
      else
        compute<false>(key + part, row + part, part);
    }
  }

  template <bool Masked>
  [[gnu::noinline]] void compute(int64_t key, int64_t row, int64_t part) {
    Vec sum[A::kRows][Vectors];
    dot_tile<A, Vectors>(sum, packed.keys + key * p.dim, p.dim, queries(), layout.units, scratch.partial);
    const Vec factor = A::set(scale);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const Vec shift = A::zero() - A::load(packed.lse + first_query + v * A::kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < A::kRows; ++r) {
        // In float32 the product is rounded as forward rounded the reference, so that a lone key's probability is exactly 1.
        Vec x = A::exponential(A::kPack == 1 ? sum[r][v] * factor + shift : A::fma(sum[r][v], factor, shift));
        if constexpr (Masked) x = A::keep(visible(part + r, v), x);
        A::store(scratch.tile + r * kWidth + v * A::kLanes, x);
        A::store_elements(scratch.probabilities + (row + r) * kWidth + v * A::kLanes, x);
      }
    }
    dot_tile<A, Vectors>(sum, packed.values + key * p.dim, p.dim, gradients(), layout.units, scratch.partial);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const Vec delta = A::load(packed.delta + first_query + v * A::kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < A::kRows; r += 2) {
        const float* probability = scratch.tile + r * kWidth + v * A::kLanes;
        Vec x = A::load(probability) * (sum[r][v] - delta), y = A::load(probability + kWidth) * (sum[r + 1][v] - delta);
        if constexpr (Masked) {
          x = A::keep(visible(part + r, v), x);
          y = A::keep(visible(part + r + 1, v), y);
        }
        store_gradients(row + r, v, x, y);
      }
    }
  }

  typename A::IVec visible(int64_t row, int v) const { return A::load_mask(scratch.visible + row * kWidth + v * A::kLanes); }

  [[gnu::always_inline]] void store_gradients(int64_t row, int v, Vec x, Vec y) const {
    A::store_elements(scratch.score_gradients + row * kWidth + v * A::kLanes, x);
    A::store_elements(scratch.score_gradients + (row + 1) * kWidth + v * A::kLanes, y);
    if constexpr (A::kPack == 2) A::store_unit_pair(scratch.score_gradient_pairs + row * kWidth + v * A::kLanes * 2, x, y);
  }

  // dq of this query block, dk and dv of this key block.
  void multiply(int64_t key_begin, int64_t keys, float* query_gradient) const {
    const E* pairs = A::kPack == 2 ? scratch.score_gradient_pairs : scratch.score_gradients;
    for (int64_t panel = 0; panel < layout.row_panels; ++panel)
      add_product<A, Vectors>(query_gradient + panel * A::kRows * kWidth, kWidth,
                              packed.key_panels + (panel * layout.keys + key_begin) * A::kRows, A::kPack, A::kRows * A::kPack, pairs,
                              kWidth * A::kPack, keys / A::kPack);
    const int64_t lanes = layout.lane_dim;
    for (int64_t row = 0; row < keys; row += A::kRows) {
      add_product_columns<A>(scratch.value_gradient + row * lanes, lanes, scratch.probabilities + row * kWidth, kWidth, A::kPack,
                             packed.gradient_pairs + first_query * lanes, lanes * A::kPack, kWidth / A::kPack, lanes / A::kLanes);
      add_product_columns<A>(scratch.key_gradient + row * lanes, lanes, scratch.score_gradients + row * kWidth, kWidth, A::kPack,
                             packed.query_pairs + first_query * lanes, lanes * A::kPack, kWidth / A::kPack, lanes / A::kLanes);
    }
  }
};

template <class A, int Vectors>
void backward_tile_block(const AttentionProblem& p, const Layout<A>& layout, const BackwardPacked<A>& packed,
                         const BackwardScratch<A>& scratch, int64_t first_query, int64_t key_begin, int64_t key_end,
                         float* query_gradient) {
  const int64_t end_query = smaller(first_query + Vectors * A::kLanes, p.queries);
  if (key_begin >= p.key_limit(end_query - 1)) return;
  classify_tiles(p, first_query, end_query, key_begin, smaller(key_end, p.keys), scratch.tiles, scratch.all, scratch.any);
  const int64_t tiles = (key_end - key_begin) / kTileKeys;
  bool some = false;
  for (int64_t t = 0; t < tiles; ++t) some = some || scratch.tiles[t] != Tile::kEmpty;
  if (!some) return;
  fill_limits(p, first_query, Vectors * A::kLanes, scratch.limits);
  BackwardTile<A, Vectors> tile{p, layout, packed, scratch, first_query, p.scale * A::kLogBase};
  for (int64_t t = 0; t < tiles; ++t) tile.run(key_begin + t * kTileKeys, t * kTileKeys, scratch.tiles[t]);
  tile.multiply(key_begin, key_end - key_begin, query_gradient);
}

// Writes dk and dv of keys [key_begin, key_end), at most a block, and adds their part to the transposed dq.
template <class A, typename T>
void backward_keys(const AttentionProblem& p, const char* packed_base, int64_t key_begin, int64_t key_end, char* query_gradient_base,
                   char* scratch_base) {
  const Layout<A> layout(p);
  const BackwardPacked<A> packed(layout, const_cast<char*>(packed_base));
  const BackwardScratch<A> scratch(layout, scratch_base);
  float* query_gradient = reinterpret_cast<float*>(query_gradient_base);
  const int64_t end = round_up(key_end, kTileKeys);
  clear(scratch.key_gradient, kKeyBlock * layout.lane_dim);
  clear(scratch.value_gradient, kKeyBlock * layout.lane_dim);
  for (int64_t index = 0; index < query_block_count(layout.vectors); ++index) {
    const QueryBlock block = query_block(layout.vectors, index);
    const int64_t first = block.first_vector * A::kLanes;
    float* accumulator = query_gradient + first * layout.lane_dim;
    if (block.vectors == 3)
      backward_tile_block<A, 3>(p, layout, packed, scratch, first, key_begin, end, accumulator);
    else if (block.vectors == 2)
      backward_tile_block<A, 2>(p, layout, packed, scratch, first, key_begin, end, accumulator);
    else
      backward_tile_block<A, 1>(p, layout, packed, scratch, first, key_begin, end, accumulator);
  }
  for (int64_t key = key_begin; key < key_end; ++key) {
    float* row = scratch.key_gradient + (key - key_begin) * layout.lane_dim;
    if (p.k_cos != nullptr) rotate_back(row, p.k_cos + key * p.k_cos_stride, p.k_sin + key * p.k_sin_stride, p.dim);
    write_row<A, T>(row, p.scale, p.dk, key, p.dim);
    write_row<A, T>(scratch.value_gradient + (key - key_begin) * layout.lane_dim, 1.0f, p.dv, key, p.dim);
  }
}

template <class A, typename T>
void backward_finish(const AttentionProblem& p, const char* query_gradients, int splits, int64_t index, char* scratch_base) {
  const Layout<A> layout(p);
  const BackwardScratch<A> scratch(layout, scratch_base);
  const QueryBlock block = query_block(layout.vectors, index);
  const int64_t first = block.first_vector * A::kLanes, width = block.vectors * A::kLanes;
  const int64_t split_size = layout.vectors * A::kLanes * layout.lane_dim;
  // The accumulators are this call's own: the sum is made in the first split's.
  float* sum = reinterpret_cast<float*>(const_cast<char*>(query_gradients)) + first * layout.lane_dim;
  for (int split = 1; split < splits; ++split) {
    const float* other = sum + split * split_size;
    for (int64_t i = 0; i < width * layout.lane_dim; ++i) sum[i] += other[i];
  }
  for (int v = 0; v < block.vectors; ++v) {
    for (int64_t c = 0; c < layout.lane_dim; c += A::kLanes)
      A::transpose(sum + c * width + v * A::kLanes, width, scratch.transposed + c, layout.lane_dim);
    const int64_t begin = first + v * A::kLanes;
    for (int64_t query = begin; query < smaller(begin + A::kLanes, p.queries); ++query) {
      float* row = scratch.transposed + (query - begin) * layout.lane_dim;
      if (p.q_cos != nullptr) rotate_back(row, p.q_cos + query * p.q_cos_stride, p.q_sin + query * p.q_sin_stride, p.dim);
      write_row<A, T>(row, p.scale, p.dq, query, p.dim);
    }
  }
}

}  // namespace
}  // namespace jepa
