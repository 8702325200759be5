// The register tile of the linear layer's products, what is done to its sums before they are stored, and the loop over a chunk.
#pragma once

#include "linear_pack.h"

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

// The normal distribution function at x, and e^(-x^2/2): erf by Abramowitz and Stegun 7.1.26, error 1.5e-7.
inline Vec normal_cdf(Vec x, Vec* bell) {
  const Vec z = reinterpret_cast<Vec>(_mm512_abs_ps(x)) * Lanes::set(0.707106781f);
  *bell = Avx512::exponential(-z * z);
  const Vec t = Lanes::set(1.0f) / Lanes::fma(z, Lanes::set(0.3275911f), Lanes::set(1.0f));
  Vec p = Lanes::fma(t, Lanes::set(1.061405429f), Lanes::set(-1.453152027f));
  p = Lanes::fma(p, t, Lanes::set(1.421413741f));
  p = Lanes::fma(p, t, Lanes::set(-0.284496736f));
  p = Lanes::fma(p, t, Lanes::set(0.254829592f));
  const Vec tail = Lanes::set(0.5f) * p * t * *bell;  // beyond |x|
  const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
  return _mm512_mask_sub_ps(tail, positive, Lanes::set(1.0f), tail);
}

inline Vec gelu(Vec x) {
  Vec bell;
  return x * normal_cdf(x, &bell);
}

inline Vec gelu_derivative(Vec x) {
  Vec bell;
  const Vec cdf = normal_cdf(x, &bell);
  return Lanes::fma(x * Lanes::set(0.398942280f), bell, cdf);
}

// One tile's place in the product.
struct Tile {
  const bf16* a;      // units: of its first row, or of its first pair where packed
  int64_t a_step;     // elements from row to row, or from pair to pair
  const bf16* panel;  // [pairs][columns of the panel] units
  int64_t pairs, row, column;
  float* sums;  // of the blocks of `inner` so far
  int64_t sums_stride;
  bool first, last;
};

template <int kRows, int kVectors>
inline void finish(const ProductTask& task, const Tile& tile, const Vec (&sum)[kRows][kVectors]) {
  alignas(64) float values[kRows][16 * kVectors];  // the epilogues are too long to unroll over the tile
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) Lanes::store(&values[i][16 * v], sum[i][v]);
#pragma GCC unroll 1
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 1
    for (int v = 0; v < kVectors; ++v) {
      const int64_t row = tile.row + i, column = tile.column + 16 * v;
      bf16* pre = task.pre + row * task.pre_stride + column;
      Vec y = Lanes::load(&values[i][16 * v]);
      if (task.epilogue == Epilogue::kGeluKeep) Lanes::store_elements(pre, y);
      if (task.epilogue == Epilogue::kGelu || task.epilogue == Epilogue::kGeluKeep) y = gelu(y);
      if (task.epilogue == Epilogue::kGeluGradient) y = y * gelu_derivative(widened(pre));
      const int64_t at = row * task.c_stride + column;
      if (task.c_dtype == DType::kFloat32)
        Lanes::store(static_cast<float*>(task.c) + at, y);
      else
        Lanes::store_elements(static_cast<bf16*>(task.c) + at, y);
    }
}

template <int kRows, int kVectors, bool kPacked>
[[gnu::noinline]] void run_tile(const ProductTask& task, const Tile& tile) {
  Vec sum[kRows][kVectors];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      if (!tile.first)
        sum[i][v] = Lanes::load(tile.sums + i * tile.sums_stride + 16 * v);
      else
        sum[i][v] = task.bias == nullptr ? Lanes::zero() : Lanes::load(task.bias + tile.column + 16 * v);
    }
  const bf16 *a = tile.a, *b = tile.panel;
  const int64_t across = kPacked ? 2 : tile.a_step, along = kPacked ? tile.a_step : 2;
  for (int64_t k = 0; k < tile.pairs; ++k, a += along, b += 32 * kVectors) {
    Vec columns[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) columns[v] = Lanes::load_units(b + 32 * v);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const Vec unit = Lanes::broadcast_unit(a + i * across);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = Lanes::dot(sum[i][v], unit, columns[v]);
    }
  }
  if (tile.last) return finish<kRows, kVectors>(task, tile, sum);
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) Lanes::store(tile.sums + i * tile.sums_stride + 16 * v, sum[i][v]);
}

template <int kRows, int kVectors, bool kPacked>
inline void run_rows(int64_t rows, const ProductTask& task, const Tile& tile) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      run_tile<kRows, kVectors, kPacked>(task, tile);
    else
      run_rows<kRows - 1, kVectors, kPacked>(rows, task, tile);
  }
}

template <bool kPacked>
inline void run_row_of_tiles(const ProductTask& task, const ProductPlan& plan, Tile tile, int64_t rows, int64_t begin, int64_t end) {
  const bf16* panels = tile.panel;
  float* sums = tile.sums;
  for (int64_t column = begin; column < end; column += kPanelColumns) {
    tile.column = column;
    tile.panel = panels + (column - begin) / kPanelColumns * plan.panel_elements();
    tile.sums = sums + column - begin;
    if (end - column >= kPanelColumns)
      run_rows<kTileRows, 2, kPacked>(rows, task, tile);
    else
      run_rows<kTileRows, 1, kPacked>(rows, task, tile);
  }
}

void run_chunk(const ProductTask& task, const ProductPlan& plan, int64_t chunk, char* scratch) {
  const int64_t begin = chunk * plan.chunk_columns(), end = std::min(task.columns, begin + plan.chunk_columns());
  bf16* panels = reinterpret_cast<bf16*>(scratch);
  Tile tile{};
  tile.panel = panels;
  tile.sums_stride = plan.chunk_columns();
  for (int64_t first = 0; first < task.inner; first += plan.inner_block) {
    const int64_t block = std::min(plan.inner_block, task.inner - first);
    for (int64_t column = begin; column < end; column += kPanelColumns) {
      const int64_t width = std::min(kPanelColumns, end - column);
      bf16* panel = panels + (column - begin) / kPanelColumns * plan.panel_elements();
      if (task.b_dtype == DType::kFloat32)
        pack_panel<float>(task, column, width, first, block, panel);
      else
        pack_panel<bf16>(task, column, width, first, block, panel);
    }
    tile.pairs = (block + 1) / 2;
    tile.first = first == 0;
    tile.last = first + block == task.inner;
    for (int64_t row = 0; row < task.rows; row += kTileRows) {
      // Groups are multiples of a tile; the last group may be narrower.
      const int64_t rows = std::min<int64_t>(kTileRows, task.rows - row);
      const int64_t group = row / kGroupRows, width = std::min(kGroupRows, task.rows - group * kGroupRows);
      tile.row = row;
      tile.sums = reinterpret_cast<float*>(panels + plan.panels_in_chunk * plan.panel_elements()) + row * tile.sums_stride;
      tile.a_step = task.a_packed ? 2 * width : task.a_stride;
      if (task.a_packed) {
        tile.a = task.a + packed_offset(task.rows, group, first, block) + 2 * (row - group * kGroupRows);
        run_row_of_tiles<true>(task, plan, tile, rows, begin, end);
      } else {
        tile.a = task.a + row * task.a_stride + first;
        run_row_of_tiles<false>(task, plan, tile, rows, begin, end);
      }
    }
  }
}

}  // namespace
}  // namespace jepa
