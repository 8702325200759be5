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

// A matrix whose columns lie panel by panel: kPanel of a row together, the next panel's `next` elements on.
template <typename L>
struct Panels {
  const typename L::Scalar* begin;
  int64_t next, count;

  Panels from_row(int64_t r) const { return {begin + r * kPanel<L>, next, count}; }
};

// out[r * out_stride + c] = dot of row r of a and row c of b, or adds it; rows of b are `a.count` panels long and `b_stride` apart.
template <typename L, int Rows, typename T>
inline void dot_tile(const Panels<L>& a, const typename L::Scalar* b, int64_t b_stride, int columns, bool add, T* out, int64_t out_stride) {
  using Vec = typename L::Vec;
  Vec sum[Rows][kDotColumns];
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < kDotColumns; ++c) sum[r][c] = L::set(0);
  for (int64_t i = 0; i < 2 * a.count; ++i) {
    const typename L::Scalar* lefts = a.begin + i / 2 * a.next + i % 2 * L::kLanes;
    Vec right[kDotColumns];
#pragma GCC unroll 8
    for (int c = 0; c < kDotColumns; ++c) right[c] = L::load(b + c * b_stride + i * L::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec left = L::load(lefts + r * kPanel<L>);
#pragma GCC unroll 8
      for (int c = 0; c < kDotColumns; ++c) sum[r][c] = L::fma(left, right[c], sum[r][c]);
    }
  }
  using Scalar = decltype(to_float(T{}));
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < columns; ++c) {
      T& to = out[r * out_stride + c];
      to = Cast<T>::from(static_cast<Scalar>(L::sum(sum[r][c])) + (add ? to_float(to) : Scalar(0)));
    }
}

// out (rows, dim) = g (rows, slices) @ directions[:, first : first + slices]^T, or adds it; g has zeros behind `slices`. `columns` is room
// for kDotColumns rows of g.
template <typename L, typename T, typename Out>
inline void project_back(const Panels<L>& g, int64_t rows, const T* directions, int64_t dim, int64_t all_slices, int64_t first, int64_t slices,
                         bool add, typename L::Scalar* columns, Out* out) {
  const int64_t stride = g.count * kPanel<L> + kCacheLine / static_cast<int64_t>(sizeof(typename L::Scalar));  // rows not a power of two apart
  for (int64_t d = 0; d < dim; d += kDotColumns) {
    const int some = static_cast<int>(dim - d < kDotColumns ? dim - d : kDotColumns);
    for (int c = 0; c < kDotColumns; ++c)
      widen_row<L>(c < some ? directions + (d + c) * all_slices + first : directions, c < some ? slices : 0, columns + c * stride,
                   g.count * kPanel<L>);
    int64_t r = 0;
    for (; r + kDotRows <= rows; r += kDotRows)
      dot_tile<L, kDotRows>(g.from_row(r), columns, stride, some, add, out + r * dim + d, dim);
    for (; r + 2 <= rows; r += 2) dot_tile<L, 2>(g.from_row(r), columns, stride, some, add, out + r * dim + d, dim);
    if (r < rows) dot_tile<L, 1>(g.from_row(r), columns, stride, some, add, out + r * dim + d, dim);
  }
}

}  // namespace
}  // namespace jepa
