// The register tile that every product of attention is made of: kRows x Vectors accumulators, one broadcast and one load a step.
#pragma once

#include "simd.h"

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

// sum[r][v] += sum over s of a[r * a_row + s * a_step] * b[s * b_step + v]; strides in elements, a and b hold units.
template <class A, int Vectors>
[[gnu::always_inline]] inline void accumulate(typename A::Vec (&sum)[A::kRows][Vectors], const typename A::Element* a, int64_t a_row,
                                              int64_t a_step, const typename A::Element* b, int64_t b_step, int64_t steps) {
  using Vec = typename A::Vec;
  for (int64_t s = 0; s < steps; ++s) {
    Vec loaded[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) loaded[v] = A::load_units(b + v * A::kLanes * A::kPack);
#pragma GCC unroll 8
    for (int r = 0; r < A::kRows; ++r) {
      const Vec value = A::broadcast_unit(a + r * a_row);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = A::dot(sum[r][v], value, loaded[v]);
    }
    a += a_step;
    b += b_step;
  }
}

template <class A, int Vectors>
[[gnu::always_inline]] inline void clear_tile(typename A::Vec (&sum)[A::kRows][Vectors]) {
#pragma GCC unroll 8
  for (int r = 0; r < A::kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = A::zero();
}

template <class A, int Vectors>
[[gnu::always_inline]] inline void load_tile(typename A::Vec (&sum)[A::kRows][Vectors], const float* from, int64_t row) {
#pragma GCC unroll 8
  for (int r = 0; r < A::kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = A::load(from + r * row + v * A::kLanes);
}

template <class A, int Vectors>
[[gnu::always_inline]] inline void add_tile(typename A::Vec (&sum)[A::kRows][Vectors], const float* from, int64_t row) {
#pragma GCC unroll 8
  for (int r = 0; r < A::kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = sum[r][v] + A::load(from + r * row + v * A::kLanes);
}

template <class A, int Vectors>
[[gnu::always_inline]] inline void store_tile(const typename A::Vec (&sum)[A::kRows][Vectors], float* to, int64_t row) {
#pragma GCC unroll 8
  for (int r = 0; r < A::kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) A::store(to + r * row + v * A::kLanes, sum[r][v]);
}

// A tile of dot products over channels. float32 sums at most kExactSteps terms in one chain, as the chain's rounding errors grow with
// its length; `partial` holds the first part meanwhile.
constexpr int64_t kExactSteps = 128;

template <class A, int Vectors>
[[gnu::always_inline]] inline void dot_tile(typename A::Vec (&sum)[A::kRows][Vectors], const typename A::Element* a, int64_t a_row,
                                            const typename A::Element* b, int64_t units, float* partial) {
  constexpr int64_t kWidth = Vectors * A::kLanes, kStep = kWidth * A::kPack;
  clear_tile<A, Vectors>(sum);
  if (A::kPack == 2 || units <= kExactSteps) {
    accumulate<A, Vectors>(sum, a, a_row, A::kPack, b, kStep, units);
    return;
  }
  accumulate<A, Vectors>(sum, a, a_row, A::kPack, b, kStep, kExactSteps);
  store_tile<A, Vectors>(sum, partial, kWidth);
  clear_tile<A, Vectors>(sum);
  accumulate<A, Vectors>(sum, a + kExactSteps * A::kPack, a_row, A::kPack, b + kExactSteps * kStep, kStep, units - kExactSteps);
  add_tile<A, Vectors>(sum, partial, kWidth);
}

// c[r * c_row + lane] += product of `steps` units, for one tile.
template <class A, int Vectors>
[[gnu::noinline]] void add_product(float* c, int64_t c_row, const typename A::Element* a, int64_t a_row, int64_t a_step,
                                   const typename A::Element* b, int64_t b_step, int64_t steps) {
  typename A::Vec sum[A::kRows][Vectors];
  load_tile<A, Vectors>(sum, c, c_row);
  accumulate<A, Vectors>(sum, a, a_row, a_step, b, b_step, steps);
  store_tile<A, Vectors>(sum, c, c_row);
}

// The same over `vectors` columns of lanes, three at a time, or two where that leaves no single one.
template <class A>
inline void add_product_columns(float* c, int64_t c_row, const typename A::Element* a, int64_t a_row, int64_t a_step,
                                const typename A::Element* b, int64_t b_step, int64_t steps, int64_t vectors) {
  while (vectors > 0) {
    const int64_t now = vectors == 4 || vectors == 2 ? 2 : vectors == 1 ? 1 : 3;
    if (now == 3)
      add_product<A, 3>(c, c_row, a, a_row, a_step, b, b_step, steps);
    else if (now == 2)
      add_product<A, 2>(c, c_row, a, a_row, a_step, b, b_step, steps);
    else
      add_product<A, 1>(c, c_row, a, a_row, a_step, b, b_step, steps);
    c += now * A::kLanes;
    b += now * A::kLanes * A::kPack;
    vectors -= now;
  }
}

}  // namespace
}  // namespace jepa
