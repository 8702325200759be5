// Characteristic-function sums of a block of slices, compiled once for each instruction set. One sine and cosine a sample; the points
// after the first follow by angle addition. No standard containers here: see ema_update_kernel.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "float_lanes.h"
#include "jepa/sigreg.h"

namespace jepa {

// One set of samples. Rows of `projected` are `slices` elements apart, those of the sums (2, points, slices) `sums_stride`.
struct SigregTask {
  void* projected;  // overwritten by its gradient where grad_sums is given
  DType dtype;
  void* sums;       // written, or null
  void* grad_sums;  // read, or null
  int64_t samples, slices, points, sums_stride;
  double step;
};

namespace {

// Samples whose sums stay in float32 registers before they join the float64 totals; also what the buffers below hold.
constexpr int kSamples = 64;
// Points whose sums fit the registers at once: two each, beside four of the recurrence.
#if defined(__AVX512F__)
constexpr int kPointGroup = 8;
constexpr int kTogether = 4;  // samples whose recurrences run side by side: one alone waits for its own products
#else
constexpr int kPointGroup = 4;
constexpr int kTogether = 2;
#endif
constexpr int64_t kMaxSlices = 16;  // lanes of the widest vector

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
struct Angles {  // of one block of samples and one vector of slices
  typename L::Vec first_cosine[kSamples], first_sine[kSamples];  // at the first point
  typename L::Vec cosine[kSamples], sine[kSamples];              // at the point reached
};

// (c, s) <- (c, s) turned by the first point's angle.
template <typename L>
inline void turn(typename L::Vec& c, typename L::Vec& s, typename L::Vec c1, typename L::Vec s1) {
  const auto next = L::fma(c, c1, -(s * s1));
  s = L::fma(s, c1, c * s1);
  c = next;
}

// Adds the sums at Points successive points to totals[point][2][lane] and moves every sample on by Points.
template <typename L, int Points>
void add_points(Angles<L>& angles, int samples, double* totals) {
  using Vec = typename L::Vec;
  Vec cosines[Points], sines[Points];
  for (int j = 0; j < Points; ++j) cosines[j] = sines[j] = L::set(0);
  const auto step = [&](int n, auto together) {
    constexpr int kCount = decltype(together)::value;
    Vec c[kCount], s[kCount];
    for (int i = 0; i < kCount; ++i) c[i] = angles.cosine[n + i], s[i] = angles.sine[n + i];
#pragma GCC unroll 8
    for (int j = 0; j < Points; ++j)
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) {
        cosines[j] += c[i];
        sines[j] += s[i];
        turn<L>(c[i], s[i], angles.first_cosine[n + i], angles.first_sine[n + i]);
      }
    for (int i = 0; i < kCount; ++i) angles.cosine[n + i] = c[i], angles.sine[n + i] = s[i];
  };
  int n = 0;
  for (; n + 2 <= samples; n += 2) step(n, std::integral_constant<int, 2>{});
  if (n < samples) step(n, std::integral_constant<int, 1>{});
  for (int j = 0; j < Points; ++j)
    for (int i = 0; i < L::kLanes; ++i) {
      totals[(2 * j) * L::kLanes + i] += static_cast<double>(cosines[j][i]);
      totals[(2 * j + 1) * L::kLanes + i] += static_cast<double>(sines[j][i]);
    }
}

template <typename L, int Points>
void add_remaining_points(Angles<L>& angles, int samples, int points, double* totals) {
  if constexpr (Points > 0) {
    if (points == Points) return add_points<L, Points>(angles, samples, totals);
    add_remaining_points<L, Points - 1>(angles, samples, points, totals);
  }
}

// `count` elements, zeros in the other lanes.
template <typename L, typename T>
inline typename L::Vec load_some(const T* p, int64_t count) {
  if (count >= L::kLanes) return L::load(p);
  T padded[L::kLanes] = {};
  memcpy(padded, p, sizeof(T) * static_cast<size_t>(count));
  return L::load(padded);
}

template <typename L, typename T>
inline void store_some(T* p, typename L::Vec x, int64_t count) {
  if (count >= L::kLanes) return L::store(p, x);
  T padded[L::kLanes];
  L::store(padded, x);
  memcpy(p, padded, sizeof(T) * static_cast<size_t>(count));
}

// Sums of slices [begin, begin + count), at most one vector; totals is room for 2 * points * lanes.
template <typename L, typename T>
void sum_slices(const SigregTask& task, int64_t begin, int64_t count, double* totals) {
  using Scalar = typename L::Scalar;
  const int64_t moving = task.points - 1;  // at t = 0 every cosine is 1 and every sine 0
  for (int64_t i = 0; i < 2 * moving * L::kLanes; ++i) totals[i] = 0;
  Angles<L> angles;
  for (int64_t n = 0; n < task.samples; n += kSamples) {
    const int samples = static_cast<int>(task.samples - n < kSamples ? task.samples - n : kSamples);
    const T* from = static_cast<const T*>(task.projected) + n * task.slices + begin;
    for (int i = 0; i < samples; ++i) {
      sine_cosine<L>(load_some<L>(from + i * task.slices, count), static_cast<Scalar>(task.step), &angles.first_sine[i],
                     &angles.first_cosine[i]);
      angles.sine[i] = angles.first_sine[i];
      angles.cosine[i] = angles.first_cosine[i];
    }
    for (int64_t j = 0; j < moving; j += kPointGroup) {
      const int points = static_cast<int>(moving - j < kPointGroup ? moving - j : kPointGroup);
      add_remaining_points<L, kPointGroup>(angles, samples, points, totals + 2 * j * L::kLanes);
    }
  }
  Scalar* sums = static_cast<Scalar*>(task.sums) + begin;
  for (int64_t i = 0; i < count; ++i) {
    sums[i] = static_cast<Scalar>(task.samples);
    sums[task.points * task.sums_stride + i] = 0;
    for (int64_t j = 0; j < moving; ++j) {
      sums[(j + 1) * task.sums_stride + i] = static_cast<Scalar>(totals[(2 * j) * L::kLanes + i]);
      sums[(task.points + j + 1) * task.sums_stride + i] = static_cast<Scalar>(totals[(2 * j + 1) * L::kLanes + i]);
    }
  }
}

// Gradient of slices [begin, begin + count): step * sum over j of j * (grad_sine[j] cos - grad_cosine[j] sin), which is the real part of a
// polynomial in exp(i step x), by Horner's rule. `room` holds its 2 * (points - 1) coefficients.
template <typename L, typename T>
void differentiate_slices(const SigregTask& task, int64_t begin, int64_t count, typename L::Scalar* room) {
  using Scalar = typename L::Scalar;
  using Vec = typename L::Vec;
  const Scalar* grad_cosine = static_cast<const Scalar*>(task.grad_sums) + begin;
  const Scalar* grad_sine = grad_cosine + task.points * task.sums_stride;
  const int64_t moving = task.points - 1;
  for (int64_t j = 0; j < moving; ++j) {
    const Vec factor = L::set(static_cast<Scalar>(task.step * static_cast<double>(j + 1)));
    L::store(room + 2 * j * L::kLanes, factor * load_some<L>(grad_sine + (j + 1) * task.sums_stride, count));
    L::store(room + (2 * j + 1) * L::kLanes, factor * load_some<L>(grad_cosine + (j + 1) * task.sums_stride, count));
  }
  T* at = static_cast<T*>(task.projected) + begin;
  const auto step = [&](int64_t n, auto together) {
    constexpr int kCount = decltype(together)::value;
    Vec s[kCount], c[kCount], real[kCount], imaginary[kCount];
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      sine_cosine<L>(load_some<L>(at + (n + i) * task.slices, count), static_cast<Scalar>(task.step), &s[i], &c[i]);
      real[i] = imaginary[i] = L::set(0);
    }
    for (int64_t j = moving - 1; j >= 0; --j) {
      const Vec a = L::load(room + 2 * j * L::kLanes), b = L::load(room + (2 * j + 1) * L::kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) {
        real[i] += a;
        imaginary[i] += b;
        turn<L>(real[i], imaginary[i], c[i], s[i]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) store_some<L>(at + (n + i) * task.slices, real[i], count);
  };
  int64_t n = 0;
  for (; n + kTogether <= task.samples; n += kTogether) step(n, std::integral_constant<int, kTogether>{});
  for (; n < task.samples; ++n) step(n, std::integral_constant<int, 1>{});
}

template <typename L, typename T>
void run_slices(const SigregTask& task, int64_t begin, int64_t end, double* room) {
  for (int64_t k = begin; k < end; k += L::kLanes) {
    const int64_t count = end - k < L::kLanes ? end - k : L::kLanes;
    if (task.grad_sums == nullptr)
      sum_slices<L, T>(task, k, count, room);
    else
      differentiate_slices<L, T>(task, k, count, reinterpret_cast<typename L::Scalar*>(room));
  }
}

// `room` holds 2 * points * kMaxSlices values of float64.
inline void float_slices(const SigregTask& task, int64_t begin, int64_t end, double* room) {
  switch (task.dtype) {
    case DType::kBFloat16:
      return run_slices<FloatLanes, bf16>(task, begin, end, room);
    case DType::kFloat16:
      return run_slices<FloatLanes, fp16>(task, begin, end, room);
    default:
      return run_slices<FloatLanes, float>(task, begin, end, room);
  }
}

}  // namespace
}  // namespace jepa
