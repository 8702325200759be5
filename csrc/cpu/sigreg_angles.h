// Cosines and sines of projections at equally spaced points, and their sums over samples: compiled once for each instruction set. No
// standard containers here: see ema_update_kernel.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "float_lanes.h"

namespace jepa {
namespace {

// Samples whose sums stay in float32 registers before they join the float64 totals; also what the buffers below hold.
constexpr int kSamples = 32;
#if defined(__AVX512F__)
constexpr int kTogether = 2;  // samples whose gradients are computed side by side: one alone waits for its own products
#else
constexpr int kTogether = 1;
#endif

// The points j = 1, 2, ... lie in as many rows as `rows_of_points` says: row r holds j = r, r + rows, r + 2 rows, r + 3 rows. With
// K = 2 cos(rows * angle), f(j + rows) = K f(j) - f(j - rows) for f = cos and f = sin alike: one fused product a value, where turning from
// point to point takes two products and a sum more, and three steps are too few to lose digits as a long recurrence of this kind does.
constexpr int kRow = 4;

inline int64_t rows_of_points(int64_t points) { return (points - 1 + kRow - 1) / kRow; }

// The place of point j where rows lie one after the other.
inline int64_t place_of_point(int64_t j, int64_t rows) { return (j - 1) % rows * kRow + (j - 1) / rows; }

// sin and cos of step * x. Cephes polynomials on [-pi/4, pi/4] after a reduction by pi/2 in three parts, of which the first has 8 bits:
// exact for quadrants up to 2^13. Errors up to 1.1e-7 where |step * x| <= 1e4; beyond, each lane asks libm.
template <typename L>
inline void sine_cosine(typename L::Vec x, typename L::Scalar step, typename L::Vec* sine, typename L::Vec* cosine) {
  using Scalar = typename L::Scalar;
  using Vec = typename L::Vec;
  constexpr bool kExact = std::is_same_v<Scalar, double>;
  const Vec angle = x * L::set(step);
  if (kExact || L::any_above(angle < L::set(0) ? -angle : angle, Scalar(1e4))) {
    for (int i = 0; i < L::kLanes; ++i) {
      const double exact = static_cast<double>(x[i]) * static_cast<double>(step);
      (*sine)[i] = static_cast<Scalar>(std::sin(exact));
      (*cosine)[i] = static_cast<Scalar>(std::cos(exact));
    }
    return;
  }
  if constexpr (!kExact) {
    typedef int32_t Int __attribute__((vector_size(sizeof(Vec))));
    const Vec magic = L::set(12582912.0f);  // 1.5 * 2^23: the sum's low bits are the rounded integer
    const Vec shifted = angle * L::set(0.636619772f) + magic;
    const Vec q = shifted - magic;
    Vec r = L::fma(x, L::set(step), q * L::set(-1.5703125f));
    r = L::fma(q, L::set(-4.837512969970703125e-4f), r);
    r = L::fma(q, L::set(-7.54978995489188216e-8f), r);
    const Vec r2 = r * r;
    Vec s = L::fma(L::set(-1.9515295891e-4f), r2, L::set(8.3321608736e-3f));
    s = L::fma(s, r2, L::set(-1.6666654611e-1f));
    s = L::fma(s * r2, r, r);
    Vec c = L::fma(L::set(2.443315711809948e-5f), r2, L::set(-1.388731625493765e-3f));
    c = L::fma(c, r2, L::set(4.166664568298827e-2f));
    c = L::fma(c * r2, r2, L::fma(r2, L::set(-0.5f), L::set(1.0f)));
    const Int quadrant = reinterpret_cast<Int>(shifted);
    const Int swap = (quadrant & 1) != 0;
    const Int sine_sign = (quadrant & 2) << 30, cosine_sign = ((quadrant + 1) & 2) << 30;
    *sine = reinterpret_cast<Vec>(reinterpret_cast<Int>(swap ? c : s) ^ sine_sign);
    *cosine = reinterpret_cast<Vec>(reinterpret_cast<Int>(swap ? s : c) ^ cosine_sign);
  }
}

template <typename L>
struct Angle {
  typename L::Vec cosine, sine;
};

template <typename L>
inline Angle<L> sum_of(const Angle<L>& a, const Angle<L>& b) {
  return {L::fma(a.cosine, b.cosine, -(a.sine * b.sine)), L::fma(a.sine, b.cosine, a.cosine * b.sine)};
}

// The angles 0 to `rows` steps of one projection, `apart` elements from each other.
template <typename L>
inline __attribute__((always_inline)) void first_angles(typename L::Vec z, double step, int64_t rows, int64_t apart, Angle<L>* to) {
  to[0] = {L::set(1), L::set(0)};
  if (rows > 0) sine_cosine<L>(z, static_cast<typename L::Scalar>(step), &to[apart].sine, &to[apart].cosine);
#pragma GCC unroll 4
  for (int64_t r = 2; r <= rows; ++r) {
    const Angle<L>& half = to[r / 2 * apart];
    if (r == 2 || r == 4) {
      // 1 - 2 sin^2, and not cos^2 - sin^2, which would take twice the rounding of a cosine near 1, the same for all small projections.
      const auto both = half.sine + half.sine;
      to[r * apart] = {L::fma(-both, half.sine, L::set(1)), both * half.cosine};
    } else {
      to[r * apart] = sum_of(half, to[(r - r / 2) * apart]);
    }
  }
}

// Adds the sums over samples at the points of a row to totals[4], `next` elements apart, [2][lane] each. `at` holds the row's first angle,
// `mirrored` the angle rows - r, `all` that of all rows.
template <typename L>
void add_row(const Angle<L>* at, const Angle<L>* mirrored, const Angle<L>* all, int samples, double* totals, int64_t next) {
  using Vec = typename L::Vec;
  Vec cosines[kRow], sines[kRow];
  for (int i = 0; i < kRow; ++i) cosines[i] = sines[i] = L::set(0);
  for (int n = 0; n < samples; ++n) {
    const Vec twice = all[n].cosine + all[n].cosine;
    Angle<L> before{mirrored[n].cosine, -mirrored[n].sine}, now = at[n];
#pragma GCC unroll 4
    for (int i = 0; i < kRow; ++i) {
      cosines[i] += now.cosine;
      sines[i] += now.sine;
      const Angle<L> after{L::fma(twice, now.cosine, -before.cosine), L::fma(twice, now.sine, -before.sine)};
      before = now;
      now = after;
    }
  }
  for (int i = 0; i < kRow; ++i, totals += next)
    for (int lane = 0; lane < L::kLanes; ++lane) {
      totals[lane] += static_cast<double>(cosines[i][lane]);
      totals[L::kLanes + lane] += static_cast<double>(sines[i][lane]);
    }
}

}  // namespace
}  // namespace jepa
