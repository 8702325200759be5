// The two small matrix products of SIGReg, on tiles that stay in the caches between the product and what follows it: compiled once for
// each instruction set. No standard containers here: see ema_update_kernel.h.
#pragma once

#include <cstdint>

#include "float_lanes.h"

namespace jepa {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 8;  // two vectors each in registers: 16 of 32
constexpr int kBackRows = 6;
#else
constexpr int kTileRows = 4;
constexpr int kBackRows = 2;
#endif

constexpr int64_t kCacheLine = 64;

// Slices whose projections are made together.
template <typename L>
constexpr int64_t kPanel = 2 * L::kLanes;

// to[i] = from[i] for i < count and 0 for the rest of `room` elements.
template <typename L, typename T>
inline void widen_row(const T* from, int64_t count, typename L::Scalar* to, int64_t room) {
  int64_t i = 0;
  for (; i + L::kLanes <= count; i += L::kLanes) L::store(to + i, L::load(from + i));
  for (; i < count; ++i) to[i] = static_cast<typename L::Scalar>(to_float(from[i]));
  for (; i < room; ++i) to[i] = 0;
}

// Columns [begin, begin + count) of directions (dim, slices) as (dim, kPanel), zeros behind them.
template <typename L, typename T>
inline void pack_panel(const T* directions, int64_t dim, int64_t slices, int64_t begin, int64_t count, typename L::Scalar* panel) {
  for (int64_t d = 0; d < dim; ++d) widen_row<L>(directions + d * slices + begin, count, panel + d * kPanel<L>, kPanel<L>);
}

// z[r][0..kPanel) = sum over d of x[r][d] panel[d][...], for Rows rows.
template <typename L, int Rows>
inline void project_tile(const typename L::Scalar* x, int64_t dim, const typename L::Scalar* panel, typename L::Scalar* z) {
  using Vec = typename L::Vec;
  Vec low[Rows], high[Rows];
  for (int r = 0; r < Rows; ++r) low[r] = high[r] = L::set(0);
  for (int64_t d = 0; d < dim; ++d) {
    const Vec a = L::load(panel + d * kPanel<L>), b = L::load(panel + d * kPanel<L> + L::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec factor = L::set(x[r * dim + d]);
      low[r] = L::fma(factor, a, low[r]);
      high[r] = L::fma(factor, b, high[r]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    L::store(z + r * kPanel<L>, low[r]);
    L::store(z + r * kPanel<L> + L::kLanes, high[r]);
  }
}

template <typename L>
inline void project(const typename L::Scalar* x, int64_t rows, int64_t dim, const typename L::Scalar* panel, typename L::Scalar* z) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) project_tile<L, kTileRows>(x + r * dim, dim, panel, z + r * kPanel<L>);
  for (; r < rows; ++r) project_tile<L, 1>(x + r * dim, dim, panel, z + r * kPanel<L>);
}

// Elements of a row of transposed directions.
template <typename L>
inline int64_t width_of(int64_t dim) {
  return (dim + L::kLanes - 1) / L::kLanes * L::kLanes;
}

// A packed panel (dim, kPanel) as rows (kPanel, width), zeros behind dim.
template <typename L>
inline void transpose_panel(const typename L::Scalar* panel, int64_t dim, typename L::Scalar* rows) {
  const int64_t width = width_of<L>(dim);
  for (int64_t d = 0; d < width; ++d)
    for (int64_t k = 0; k < kPanel<L>; ++k) rows[k * width + d] = d < dim ? panel[d * kPanel<L> + k] : 0;
}

// out[r][0..Vectors) += sum over k of g[r][k] directions[k][...], for Rows rows of g (kPanel apart) and one panel's k, summed by itself: a
// single sum over all slices would lose digits. Rows of the other two are `width` apart.
template <typename L, int Rows, int Vectors>
inline void project_back_tile(const typename L::Scalar* g, const typename L::Scalar* directions, int64_t width, typename L::Scalar* out) {
  using Vec = typename L::Vec;
  Vec sum[Rows][Vectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) sum[r][v] = L::set(0);
  for (int64_t k = 0; k < kPanel<L>; ++k) {
    Vec right[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) right[v] = L::load(directions + k * width + v * L::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec factor = L::set(g[r * kPanel<L> + k]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = L::fma(factor, right[v], sum[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) {
      typename L::Scalar* to = out + r * width + v * L::kLanes;
      L::store(to, L::load(to) + sum[r][v]);
    }
}

template <typename L, int Vectors>
inline void project_back_columns(const typename L::Scalar* g, int64_t rows, const typename L::Scalar* directions, int64_t width,
                                 typename L::Scalar* out) {
  int64_t r = 0;
  for (; r + kBackRows <= rows; r += kBackRows)
    project_back_tile<L, kBackRows, Vectors>(g + r * kPanel<L>, directions, width, out + r * width);
  for (; r < rows; ++r) project_back_tile<L, 1, Vectors>(g + r * kPanel<L>, directions, width, out + r * width);
}

// out (rows, width) += g @ directions over `panels` panels: of g (rows, kPanel) each, `next` apart, of directions (kPanel, width). A few
// vectors of all rows at a time, so that they and a panel stay in the first-level cache.
template <typename L>
inline void project_back(const typename L::Scalar* g, int64_t next, int64_t panels, int64_t rows, const typename L::Scalar* directions,
                         int64_t width, typename L::Scalar* out) {
  constexpr int kMost = 4;
  for (int64_t d = 0; d < width; d += kMost * L::kLanes) {
    const int64_t vectors = (width - d) / L::kLanes;
    const auto columns = vectors >= kMost ? project_back_columns<L, kMost>
                         : vectors == 3   ? project_back_columns<L, 3>
                         : vectors == 2   ? project_back_columns<L, 2>
                                          : project_back_columns<L, 1>;
    for (int64_t p = 0; p < panels; ++p) columns(g + p * next, rows, directions + p * kPanel<L> * width + d, width, out + d);
  }
}

}  // namespace
}  // namespace jepa
