// Characteristic-function sums of SIGReg and their gradient, compiled once for each instruction set. Projections are made tile by tile; one
// sine and cosine each, and the points after the first follow by angle addition. No standard containers here: see ema_update_kernel.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "float_lanes.h"
#include "jepa/sigreg.h"
#include "sigreg_products.h"

namespace jepa {

// One set of samples (samples, dim), directions (dim, slices), sums (2, points, slices).
struct SigregTask {
  const void* x;
  const void* directions;
  DType dtype;
  void* sums;             // written, or null
  const void* grad_sums;  // read, or null
  void* grad_x;           // written with grad_sums
  int64_t samples, dim, slices, points;
  double step;
};

// One instruction set's kernels.
struct SigregKernels {
  int64_t panel;  // slices that `sum` takes at a time
  void (*sum)(const SigregTask&, int64_t panel_index, void* room);
  void (*differentiate)(const SigregTask&, int64_t begin, int64_t end, void* room);
};

namespace {

// Samples whose sums stay in float32 registers before they join the float64 totals; also what the buffers below hold.
constexpr int kSamples = 64;
constexpr int64_t kCacheLine = 64;
// Points whose sums fit the registers at once: two each, beside four of the recurrence.
#if defined(__AVX512F__)
constexpr int kPointGroup = 8;
constexpr int kTogether = 6;  // samples whose recurrences run side by side: one alone waits for its own products
#else
constexpr int kPointGroup = 4;
constexpr int kTogether = 2;
#endif

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
#pragma GCC unroll 8
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

// Takes pieces from one allocation, each at the start of a cache line.
class Room {
 public:
  explicit Room(void* begin) : at_((reinterpret_cast<uintptr_t>(begin) + kCacheLine - 1) / kCacheLine * kCacheLine) {}
  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(at_);
    at_ += (static_cast<uintptr_t>(count) * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
    return piece;
  }

 private:
  uintptr_t at_;
};

// Rows [begin, begin + count) of x in the type of the arithmetic: x itself, or a copy in `room`.
template <typename L, typename T>
inline const typename L::Scalar* rows_of(const SigregTask& task, int64_t begin, int64_t count, typename L::Scalar* room) {
  const T* from = static_cast<const T*>(task.x) + begin * task.dim;
  if constexpr (std::is_same_v<T, typename L::Scalar>) {
    return from;
  } else {
    widen_row<L>(from, count * task.dim, room, count * task.dim);
    return room;
  }
}

// Rounds projections to the type of x, as a matrix product of that type does.
template <typename L, typename T>
inline typename L::Vec rounded_to(typename L::Vec z) {
  if constexpr (std::is_same_v<T, typename L::Scalar>) {
    return z;
  } else {
    T narrow[L::kLanes];
    L::store(narrow, z);
    return L::load(narrow);
  }
}

// Adds the sums of `samples` projections of one vector of slices, rows kPanel apart, to totals[point][2][lane].
template <typename L, typename T>
void add_sums(const SigregTask& task, const typename L::Scalar* z, int samples, double* totals) {
  Angles<L> angles;
  for (int i = 0; i < samples; ++i) {
    sine_cosine<L>(rounded_to<L, T>(L::load(z + i * kPanel<L>)), static_cast<typename L::Scalar>(task.step), &angles.first_sine[i],
                   &angles.first_cosine[i]);
    angles.sine[i] = angles.first_sine[i];
    angles.cosine[i] = angles.first_cosine[i];
  }
  const int64_t moving = task.points - 1;
  for (int64_t j = 0; j < moving; j += kPointGroup) {
    const int points = static_cast<int>(moving - j < kPointGroup ? moving - j : kPointGroup);
    add_remaining_points<L, kPointGroup>(angles, samples, points, totals + 2 * j * L::kLanes);
  }
}

// Writes the totals of slices [begin, begin + count), at most one vector.
template <typename L>
void write_sums(const SigregTask& task, int64_t begin, int64_t count, const double* totals) {
  using Scalar = typename L::Scalar;
  Scalar* sums = static_cast<Scalar*>(task.sums) + begin;
  const int64_t moving = task.points - 1;  // at t = 0 every cosine is 1 and every sine 0
  // Row by row: rows lie a power of two apart, so that writing down the columns would throw each line out before it is full.
  const auto write_row = [&](int64_t row, const auto& value) {
    for (int64_t i = 0; i < count; ++i) sums[row * task.slices + i] = static_cast<Scalar>(value(i));
  };
  write_row(0, [&](int64_t) { return task.samples; });
  write_row(task.points, [](int64_t) { return 0; });
  for (int64_t j = 0; j < moving; ++j) {
    write_row(j + 1, [&](int64_t i) { return totals[2 * j * L::kLanes + i]; });
    write_row(task.points + j + 1, [&](int64_t i) { return totals[(2 * j + 1) * L::kLanes + i]; });
  }
}

inline int64_t at_most(int64_t limit, int64_t x) { return x < limit ? x : limit; }

// The sums of panel number `panel_index` of the slices, over all samples in order.
template <typename L, typename T>
void sum_panel(const SigregTask& task, int64_t panel_index, void* memory) {
  using Scalar = typename L::Scalar;
  Room room(memory);
  Scalar* panel = room.take<Scalar>(task.dim * kPanel<L>);
  Scalar* z = room.take<Scalar>(kSamples * kPanel<L>);
  Scalar* copied = room.take<Scalar>(kSamples * task.dim);
  const int64_t of_vector = 2 * (task.points - 1) * L::kLanes;
  double* totals = room.take<double>(2 * of_vector);
  for (int64_t i = 0; i < 2 * of_vector; ++i) totals[i] = 0;
  const int64_t begin = panel_index * kPanel<L>, count = at_most(kPanel<L>, task.slices - begin);
  pack_panel<L>(static_cast<const T*>(task.directions), task.dim, task.slices, begin, count, panel);
  for (int64_t n = 0; n < task.samples; n += kSamples) {
    const int samples = static_cast<int>(at_most(kSamples, task.samples - n));
    project<L>(rows_of<L, T>(task, n, samples, copied), samples, task.dim, panel, z, kPanel<L>);
    add_sums<L, T>(task, z, samples, totals);
    if (count > L::kLanes) add_sums<L, T>(task, z + L::kLanes, samples, totals + of_vector);
  }
  write_sums<L>(task, begin, at_most(L::kLanes, count), totals);
  if (count > L::kLanes) write_sums<L>(task, begin + L::kLanes, count - L::kLanes, totals + of_vector);
}

// Overwrites projections of one vector of slices by their gradient: step * sum over j of j * (grad_sine[j] cos - grad_cosine[j] sin), which
// is the real part of a polynomial in exp(i step z), by Horner's rule. `room` holds its 2 * (points - 1) coefficients.
template <typename L, typename T>
void differentiate(const SigregTask& task, int64_t begin, int64_t count, typename L::Scalar* z, int64_t stride, int64_t samples,
                   typename L::Scalar* room) {
  using Scalar = typename L::Scalar;
  using Vec = typename L::Vec;
  const Scalar* grad_cosine = static_cast<const Scalar*>(task.grad_sums) + begin;
  const Scalar* grad_sine = grad_cosine + task.points * task.slices;
  const int64_t moving = task.points - 1;
  for (int64_t j = 0; j < moving; ++j) {
    const Vec factor = L::set(static_cast<Scalar>(task.step * static_cast<double>(j + 1)));
    L::store(room + 2 * j * L::kLanes, factor * load_some<L>(grad_sine + (j + 1) * task.slices, count));
    L::store(room + (2 * j + 1) * L::kLanes, factor * load_some<L>(grad_cosine + (j + 1) * task.slices, count));
  }
  const auto step = [&](int64_t n, auto together) {
    constexpr int kCount = decltype(together)::value;
    Vec s[kCount], c[kCount], real[kCount], imaginary[kCount];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      sine_cosine<L>(rounded_to<L, T>(L::load(z + (n + i) * stride)), static_cast<Scalar>(task.step), &s[i], &c[i]);
      real[i] = imaginary[i] = L::set(0);
    }
    for (int64_t j = moving - 1; j >= 0; --j) {
      const Vec a = L::load(room + 2 * j * L::kLanes), b = L::load(room + (2 * j + 1) * L::kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) {
        real[i] += a;
        imaginary[i] += b;
        turn<L>(real[i], imaginary[i], c[i], s[i]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) L::store(z + (n + i) * stride, real[i]);
  };
  int64_t n = 0;
  for (; n + kTogether <= samples; n += kTogether) step(n, std::integral_constant<int, kTogether>{});
  for (; n < samples; ++n) step(n, std::integral_constant<int, 1>{});
}

// The gradient of samples [begin, end): each row of it is the sum over all slices, in order.
template <typename L, typename T>
void differentiate_samples(const SigregTask& task, int64_t begin, int64_t end, void* memory) {
  using Scalar = typename L::Scalar;
  const int64_t samples = end - begin, panels = (task.slices + kPanel<L> - 1) / kPanel<L>, stride = panels * kPanel<L> + kCacheLine / sizeof(Scalar);
  Room room(memory);
  Scalar* z = room.take<Scalar>(samples * stride);
  Scalar* panel = room.take<Scalar>(task.dim * kPanel<L>);
  Scalar* columns = room.take<Scalar>(kDotColumns * stride);
  Scalar* copied = room.take<Scalar>(samples * task.dim);
  Scalar* coefficients = room.take<Scalar>(2 * task.points * L::kLanes);
  const T* directions = static_cast<const T*>(task.directions);
  const Scalar* x = rows_of<L, T>(task, begin, samples, copied);
  for (int64_t k = 0; k < task.slices; k += kPanel<L>) {
    const int64_t count = at_most(kPanel<L>, task.slices - k);
    pack_panel<L>(directions, task.dim, task.slices, k, count, panel);
    project<L>(x, samples, task.dim, panel, z + k, stride);
    for (int64_t v = 0; v < kPanel<L>; v += L::kLanes)
      if (v < count) differentiate<L, T>(task, k + v, at_most(L::kLanes, count - v), z + k + v, stride, samples, coefficients);
  }
  for (int64_t n = 0; n < samples; ++n)
    for (int64_t i = task.slices; i < stride; ++i) z[n * stride + i] = 0;
  project_back<L>(z, samples, stride, directions, task.dim, task.slices, columns, static_cast<T*>(task.grad_x) + begin * task.dim);
}

// Bytes of memory for the two functions above, at any width of vectors; `samples` of the backward pass.
inline int64_t forward_room(const SigregTask& task, int64_t item) {
  constexpr int64_t kWidest = 32;
  return (task.dim * kWidest + kSamples * (kWidest + task.dim)) * item + 2 * task.points * kWidest * 8 + 8 * kCacheLine;
}

inline int64_t backward_room(const SigregTask& task, int64_t samples, int64_t item) {
  constexpr int64_t kWidest = 32;
  const int64_t stride = (task.slices + kWidest - 1) / kWidest * kWidest + kCacheLine / item;
  return ((samples + 4) * stride + task.dim * (kWidest + samples) + 2 * task.points * kWidest) * item + 8 * kCacheLine;
}

template <typename L, typename T>
constexpr SigregKernels kKernelsOf{kPanel<L>, sum_panel<L, T>, differentiate_samples<L, T>};

inline SigregKernels float_kernels(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return kKernelsOf<FloatLanes, bf16>;
    case DType::kFloat16:
      return kKernelsOf<FloatLanes, fp16>;
    default:
      return kKernelsOf<FloatLanes, float>;
  }
}

}  // namespace
}  // namespace jepa
