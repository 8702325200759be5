// The two small matrix products of SIGReg, on tiles that stay in the caches between the product and what follows it: compiled once for
// each instruction set. No standard containers here: see ema_update_kernel.h.
#pragma once

#include <cstdint>

#include "float_lanes.h"

namespace jepa {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 8;  // two vectors each in registers: 16 of 32
constexpr int kDotRows = 6, kDotColumns = 4;
#else
constexpr int kTileRows = 4;
constexpr int kDotRows = 2, kDotColumns = 4;
#endif

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

// z[r][0..kPanel) = sum over d of x[r][d] panel[d][...], for Rows rows; rows of x are `dim`, those of z `z_stride` apart.
template <typename L, int Rows>
inline void project_tile(const typename L::Scalar* x, int64_t dim, const typename L::Scalar* panel, typename L::Scalar* z,
                         int64_t z_stride) {
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
    L::store(z + r * z_stride, low[r]);
    L::store(z + r * z_stride + L::kLanes, high[r]);
  }
}

template <typename L>
inline void project(const typename L::Scalar* x, int64_t rows, int64_t dim, const typename L::Scalar* panel, typename L::Scalar* z,
                    int64_t z_stride) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) project_tile<L, kTileRows>(x + r * dim, dim, panel, z + r * z_stride, z_stride);
  for (; r < rows; ++r) project_tile<L, 1>(x + r * dim, dim, panel, z + r * z_stride, z_stride);
}

// out[r * out_stride + c] = dot of row r of a and row c of b, `length` elements each, a multiple of the lanes.
template <typename L, int Rows, typename T>
inline void dot_tile(const typename L::Scalar* a, int64_t a_stride, const typename L::Scalar* b, int64_t b_stride, int64_t length,
                     int columns, T* out, int64_t out_stride) {
  using Vec = typename L::Vec;
  Vec sum[Rows][kDotColumns];
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < kDotColumns; ++c) sum[r][c] = L::set(0);
  for (int64_t i = 0; i < length; i += L::kLanes) {
    Vec right[kDotColumns];
#pragma GCC unroll 8
    for (int c = 0; c < kDotColumns; ++c) right[c] = L::load(b + c * b_stride + i);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec left = L::load(a + r * a_stride + i);
#pragma GCC unroll 8
      for (int c = 0; c < kDotColumns; ++c) sum[r][c] = L::fma(left, right[c], sum[r][c]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < columns; ++c)
      out[r * out_stride + c] = Cast<T>::from(static_cast<decltype(to_float(T{}))>(L::sum(sum[r][c])));
}

// out (rows, dim) = g (rows, slices) @ directions^T; rows of g are `stride` apart with zeros behind `slices`. `columns` is room for
// kDotColumns rows of `stride`.
template <typename L, typename T>
inline void project_back(const typename L::Scalar* g, int64_t rows, int64_t stride, const T* directions, int64_t dim, int64_t slices,
                         typename L::Scalar* columns, T* out) {
  for (int64_t d = 0; d < dim; d += kDotColumns) {
    const int some = static_cast<int>(dim - d < kDotColumns ? dim - d : kDotColumns);
    for (int c = 0; c < kDotColumns; ++c)
      widen_row<L>(c < some ? directions + (d + c) * slices : directions, c < some ? slices : 0, columns + c * stride, stride);
    int64_t r = 0;
    for (; r + kDotRows <= rows; r += kDotRows)
      dot_tile<L, kDotRows>(g + r * stride, stride, columns, stride, stride, some, out + r * dim + d, dim);
    for (; r + 2 <= rows; r += 2) dot_tile<L, 2>(g + r * stride, stride, columns, stride, stride, some, out + r * dim + d, dim);
    if (r < rows) dot_tile<L, 1>(g + r * stride, stride, columns, stride, stride, some, out + r * dim + d, dim);
  }
}

}  // namespace
}  // namespace jepa
