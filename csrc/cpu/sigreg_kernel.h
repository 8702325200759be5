// Characteristic-function sums of SIGReg and their gradient, compiled once for each instruction set. Projections are made tile by tile; one
// sine and cosine each, and the points follow by angle addition. No standard containers here: see ema_update_kernel.h.
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
  void* sums;             // of `sum`
  const void* grad_sums;  // of `differentiate`
  void* grad_x;           // of `differentiate`, in x's type; of `join`, in that of the arithmetic
  const void* phi;        // of `fit`: the normal's characteristic function at the points, and what each point counts
  const void* weights;
  double of_value;  // of `fit`: the share of one slice in the statistic
  void* gradients;   // of `join`: panels of (samples, panel)
  void* transposed;  // directions as panels of (panel, width_of(dim)): all of `join` and `differentiate`, the one of `transpose` and `fit`
  int64_t samples, dim, slices, points;
  double step;
};

// One instruction set's kernels.
struct SigregKernels {
  int64_t panel;                       // slices that functions of a panel take at a time
  int64_t (*width_of)(int64_t dim);
  void (*transpose)(const SigregTask&, int64_t panel_index, void* room);
  void (*sum)(const SigregTask&, int64_t panel_index, void* room);
  void (*differentiate)(const SigregTask&, int64_t begin, int64_t end, void* room);
  double (*fit)(const SigregTask&, int64_t panel_index, void* projections, void* room);
  void (*join)(const SigregTask&, int64_t panels, bool add, int64_t begin, int64_t end, void* room);
};

namespace {

// Samples whose sums stay in float32 registers before they join the float64 totals; also what the buffers below hold.
constexpr int kSamples = 64;
// Points after the first come in groups of four, see `Angles`. Groups whose sums fit the registers at once, and samples whose gradients are
// computed side by side: one alone waits for its own products.
constexpr int kGroup = 4;
#if defined(__AVX512F__)
constexpr int kGroupsTogether = 2, kTogether = 2;
#else
constexpr int kGroupsTogether = 1, kTogether = 1;
#endif

inline int64_t groups_of(int64_t points) { return (points - 1 + kGroup - 1) / kGroup; }

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

// What the angles at all points are made from, of one projection. Group g of the points lies at 1/2 and 3/2 steps to both sides of its
// center, 4 g + 5/2 steps. The four products of a cosine or sine of the center with one of the offset give the points on both sides,
// cos(a +- b) = cos a cos b -+ sin a sin b and sin(a +- b) = sin a cos b +- cos a sin b: a third less arithmetic than from point to point,
// where sums over samples or over points are wanted.
template <typename L>
struct Angles {
  Angle<L> offsets[2], center, group;  // 1/2, 3/2; that of the group reached; 4 steps
};

template <typename L>
inline Angles<L> angles_of(typename L::Vec z, double step) {
  Angle<L> half;
  sine_cosine<L>(z, static_cast<typename L::Scalar>(step / 2), &half.sine, &half.cosine);
  // 1 - 2 sin^2, and not cos^2 - sin^2, which would take twice the rounding of a cosine near 1, the same for all small projections.
  const auto both = half.sine + half.sine;
  const Angle<L> one{L::fma(-both, half.sine, L::set(1)), both * half.cosine}, far = sum_of(one, half), center = sum_of(far, one);
  return {{half, far}, center, sum_of(center, far)};
}

// Places in their group of the points on both sides of an offset.
constexpr int kBelow[2] = {1, 0}, kAbove[2] = {2, 3};

// Adds the sums over samples of Groups successive groups to totals[point][2][lane] and moves every sample on behind them.
template <typename L, int Groups>
void add_groups(Angles<L>* angles, int samples, double* totals) {
  using Vec = typename L::Vec;
  Vec cc[Groups][2], ss[Groups][2], sc[Groups][2], cs[Groups][2];  // center by offset
  for (int g = 0; g < Groups; ++g)
    for (int o = 0; o < 2; ++o) cc[g][o] = ss[g][o] = sc[g][o] = cs[g][o] = L::set(0);
  for (int n = 0; n < samples; ++n) {
    Angle<L> center = angles[n].center;
#pragma GCC unroll 2
    for (int g = 0; g < Groups; ++g) {
#pragma GCC unroll 2
      for (int o = 0; o < 2; ++o) {
        const Angle<L>& offset = angles[n].offsets[o];
        cc[g][o] = L::fma(center.cosine, offset.cosine, cc[g][o]);
        ss[g][o] = L::fma(center.sine, offset.sine, ss[g][o]);
        sc[g][o] = L::fma(center.sine, offset.cosine, sc[g][o]);
        cs[g][o] = L::fma(center.cosine, offset.sine, cs[g][o]);
      }
      center = sum_of(center, angles[n].group);
    }
    angles[n].center = center;
  }
  for (int g = 0; g < Groups; ++g)
    for (int o = 0; o < 2; ++o) {
      double* below = totals + 2 * (kGroup * g + kBelow[o]) * L::kLanes;
      double* above = totals + 2 * (kGroup * g + kAbove[o]) * L::kLanes;
      for (int i = 0; i < L::kLanes; ++i) {
        const double same = static_cast<double>(cc[g][o][i]), other = static_cast<double>(ss[g][o][i]);
        below[i] += same + other;
        above[i] += same - other;
      }
      for (int i = 0; i < L::kLanes; ++i) {
        const double same = static_cast<double>(sc[g][o][i]), other = static_cast<double>(cs[g][o][i]);
        below[L::kLanes + i] += same - other;
        above[L::kLanes + i] += same + other;
      }
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

// Adds the sums of `samples` projections of one vector of slices, rows kPanel apart, to totals[point][2][lane], which has whole groups.
template <typename L, typename T>
void add_sums(const SigregTask& task, const typename L::Scalar* z, int samples, double* totals) {
  Angles<L> angles[kSamples];
  for (int i = 0; i < samples; ++i) angles[i] = angles_of<L>(rounded_to<L, T>(L::load(z + i * kPanel<L>)), task.step);
  const int64_t groups = groups_of(task.points), of_group = 2 * kGroup * L::kLanes;
  int64_t g = 0;
  for (; g + kGroupsTogether <= groups; g += kGroupsTogether) add_groups<L, kGroupsTogether>(angles, samples, totals + g * of_group);
  for (; g < groups; ++g) add_groups<L, 1>(angles, samples, totals + g * of_group);
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
  const int64_t of_vector = 2 * kGroup * groups_of(task.points) * L::kLanes;
  double* totals = room.take<double>(2 * of_vector);
  for (int64_t i = 0; i < 2 * of_vector; ++i) totals[i] = 0;
  const int64_t begin = panel_index * kPanel<L>, count = at_most(kPanel<L>, task.slices - begin);
  pack_panel<L>(static_cast<const T*>(task.directions), task.dim, task.slices, begin, count, panel);
  for (int64_t n = 0; n < task.samples; n += kSamples) {
    const int samples = static_cast<int>(at_most(kSamples, task.samples - n));
    project<L>(rows_of<L, T>(task, n, samples, copied), samples, task.dim, panel, z);
    add_sums<L, T>(task, z, samples, totals);
    if (count > L::kLanes) add_sums<L, T>(task, z + L::kLanes, samples, totals + of_vector);
  }
  write_sums<L>(task, begin, at_most(L::kLanes, count), totals);
  if (count > L::kLanes) write_sums<L>(task, begin + L::kLanes, count - L::kLanes, totals + of_vector);
}

// Turns what points count in the gradient, [point][2][lane], into what the products of center and offset count, [group][offset][4][lane].
template <typename L>
void pair_up(int64_t groups, typename L::Scalar* coefficients) {
  using Vec = typename L::Vec;
  for (int64_t g = 0; g < groups; ++g, coefficients += 2 * kGroup * L::kLanes) {
    Vec sine[kGroup], cosine[kGroup];
    for (int j = 0; j < kGroup; ++j) {
      sine[j] = L::load(coefficients + 2 * j * L::kLanes);
      cosine[j] = L::load(coefficients + (2 * j + 1) * L::kLanes);
    }
    for (int o = 0; o < 2; ++o) {
      const int below = kBelow[o], above = kAbove[o];
      L::store(coefficients + (4 * o + 0) * L::kLanes, sine[above] + sine[below]);      // cos by cos
      L::store(coefficients + (4 * o + 1) * L::kLanes, cosine[below] - cosine[above]);  // cos by sin
      L::store(coefficients + (4 * o + 2) * L::kLanes, sine[below] - sine[above]);      // sin by sin
      L::store(coefficients + (4 * o + 3) * L::kLanes, -cosine[above] - cosine[below]); // sin by cos
    }
  }
}

// What the points count in the gradient of one vector of slices, step * j * (grad_sine[j], grad_cosine[j]) at points j from 1 on, paired up.
template <typename L>
void read_coefficients(const SigregTask& task, int64_t begin, int64_t count, typename L::Scalar* coefficients) {
  using Scalar = typename L::Scalar;
  const Scalar* grad_cosine = static_cast<const Scalar*>(task.grad_sums) + begin;
  const Scalar* grad_sine = grad_cosine + task.points * task.slices;
  const int64_t groups = groups_of(task.points);
  for (int64_t j = 1; j <= kGroup * groups; ++j) {
    const auto factor = L::set(static_cast<Scalar>(task.step * static_cast<double>(j)));
    const bool there = j < task.points;
    Scalar* to = coefficients + 2 * (j - 1) * L::kLanes;
    L::store(to, there ? factor * load_some<L>(grad_sine + j * task.slices, count) : L::set(0));
    L::store(to + L::kLanes, there ? factor * load_some<L>(grad_cosine + j * task.slices, count) : L::set(0));
  }
  pair_up<L>(groups, coefficients);
}

// The same from the totals of `count` slices, for the statistic of which task.of_value is the share of each; returns what they add to it.
template <typename L>
double weigh(const SigregTask& task, int64_t count, const double* totals, typename L::Scalar* coefficients) {
  using Scalar = typename L::Scalar;
  const Scalar *phi = static_cast<const Scalar*>(task.phi), *weights = static_cast<const Scalar*>(task.weights);
  const double samples = static_cast<double>(task.samples);
  const int64_t groups = groups_of(task.points);
  double value = 0;
  for (int64_t j = 1; j <= kGroup * groups; ++j) {
    const bool counts = j < task.points;
    const double weight = counts ? task.of_value * static_cast<double>(weights[j]) : 0, target = counts ? static_cast<double>(phi[j]) : 0;
    const double factor = 2 * weight * task.step * static_cast<double>(j);
    const double* at = totals + 2 * (j - 1) * L::kLanes;
    Scalar* to = coefficients + 2 * (j - 1) * L::kLanes;
    double squares = 0;
    for (int64_t i = 0; i < L::kLanes; ++i) {
      const bool there = i < count;
      const double cosine = there ? at[i] / samples - target : 0, sine = there ? at[L::kLanes + i] / samples : 0;
      squares += cosine * cosine + sine * sine;
      to[i] = static_cast<Scalar>(factor * sine);
      to[L::kLanes + i] = static_cast<Scalar>(factor * cosine);
    }
    value += weight * samples * squares;
  }
  pair_up<L>(groups, coefficients);
  return value;
}

// Overwrites projections of one vector of slices, rows kPanel apart, by their gradient: step * sum over j of j * (grad_sine[j] cos -
// grad_cosine[j] sin) with paired coefficients.
template <typename L, typename T>
void differentiate(const SigregTask& task, const typename L::Scalar* coefficients, typename L::Scalar* z, int64_t samples) {
  using Vec = typename L::Vec;
  const int64_t groups = groups_of(task.points);
  const auto step = [&](int64_t n, auto together) {
    constexpr int kCount = decltype(together)::value;
    Angles<L> angles[kCount];
    Vec gradient[kCount];
#pragma GCC unroll 2
    for (int i = 0; i < kCount; ++i) {
      angles[i] = angles_of<L>(rounded_to<L, T>(L::load(z + (n + i) * kPanel<L>)), task.step);
      gradient[i] = L::set(0);
    }
    for (int64_t g = 0; g < groups; ++g) {
      const typename L::Scalar* from = coefficients + g * 2 * kGroup * L::kLanes;
#pragma GCC unroll 2
      for (int i = 0; i < kCount; ++i) {
        Vec of_cosine = L::set(0), of_sine = L::set(0);
#pragma GCC unroll 2
        for (int o = 0; o < 2; ++o) {
          const Angle<L>& offset = angles[i].offsets[o];
          of_cosine = L::fma(L::load(from + (4 * o + 0) * L::kLanes), offset.cosine, of_cosine);
          of_cosine = L::fma(L::load(from + (4 * o + 1) * L::kLanes), offset.sine, of_cosine);
          of_sine = L::fma(L::load(from + (4 * o + 2) * L::kLanes), offset.sine, of_sine);
          of_sine = L::fma(L::load(from + (4 * o + 3) * L::kLanes), offset.cosine, of_sine);
        }
        Angle<L>& center = angles[i].center;
        gradient[i] = L::fma(center.cosine, of_cosine, L::fma(center.sine, of_sine, gradient[i]));
        center = sum_of(center, angles[i].group);
      }
    }
#pragma GCC unroll 2
    for (int i = 0; i < kCount; ++i) L::store(z + (n + i) * kPanel<L>, gradient[i]);
  };
  int64_t n = 0;
  for (; n + kTogether <= samples; n += kTogether) step(n, std::integral_constant<int, kTogether>{});
  for (; n < samples; ++n) step(n, std::integral_constant<int, 1>{});
}

// Writes a panel of the directions to task.transposed.
template <typename L, typename T>
void transpose_directions(const SigregTask& task, int64_t panel_index, void* memory) {
  using Scalar = typename L::Scalar;
  Scalar* panel = Room(memory).template take<Scalar>(task.dim * kPanel<L>);
  const int64_t begin = panel_index * kPanel<L>;
  pack_panel<L>(static_cast<const T*>(task.directions), task.dim, task.slices, begin, at_most(kPanel<L>, task.slices - begin), panel);
  transpose_panel<L>(panel, task.dim, static_cast<Scalar*>(task.transposed));
}

// Rows of `gradient` (samples, width) to `out` (samples, dim), or added to it.
template <typename L, typename T>
void write_gradient(const typename L::Scalar* gradient, int64_t samples, int64_t dim, bool add, T* out) {
  using Scalar = typename L::Scalar;
  for (int64_t n = 0; n < samples; ++n)
    for (int64_t d = 0; d < dim; ++d) {
      T& to = out[n * dim + d];
      to = Cast<T>::from(gradient[n * width_of<L>(dim) + d] + (add ? static_cast<Scalar>(to_float(to)) : Scalar(0)));
    }
}

// The gradient of samples [begin, end): each row of it is the sum over all slices, in order.
template <typename L, typename T>
void differentiate_samples(const SigregTask& task, int64_t begin, int64_t end, void* memory) {
  using Scalar = typename L::Scalar;
  const int64_t samples = end - begin, panels = (task.slices + kPanel<L> - 1) / kPanel<L>, width = width_of<L>(task.dim);
  Room room(memory);
  Scalar* z = room.take<Scalar>(samples * kPanel<L>);
  Scalar* panel = room.take<Scalar>(task.dim * kPanel<L>);
  Scalar* gradient = room.take<Scalar>(samples * width);
  Scalar* copied = room.take<Scalar>(samples * task.dim);
  Scalar* coefficients = room.take<Scalar>(2 * kGroup * groups_of(task.points) * L::kLanes);
  const Scalar* x = rows_of<L, T>(task, begin, samples, copied);
  for (int64_t i = 0; i < samples * width; ++i) gradient[i] = 0;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t k = p * kPanel<L>, count = at_most(kPanel<L>, task.slices - k);
    pack_panel<L>(static_cast<const T*>(task.directions), task.dim, task.slices, k, count, panel);
    project<L>(x, samples, task.dim, panel, z);
    for (int64_t v = 0; v < kPanel<L>; v += L::kLanes) {  // without slices the coefficients, and so the gradients, are zero
      read_coefficients<L>(task, k + v, v < count ? at_most(L::kLanes, count - v) : 0, coefficients);
      differentiate<L, T>(task, coefficients, z + v, samples);
    }
    project_back<L>(z, 0, 1, samples, static_cast<const Scalar*>(task.transposed) + k * width, width, gradient);
  }
  write_gradient<L>(gradient, samples, task.dim, false, static_cast<T*>(task.grad_x) + begin * task.dim);
}

// Projects all samples to a panel of the slices, into `projections` (samples, kPanel), and overwrites them by the gradient of the
// statistic; returns what the panel adds to it. The panel is left in task.transposed.
template <typename L, typename T>
double fit_panel(const SigregTask& task, int64_t panel_index, void* projections, void* memory) {
  using Scalar = typename L::Scalar;
  Room room(memory);
  Scalar* panel = room.take<Scalar>(task.dim * kPanel<L>);
  Scalar* copied = room.take<Scalar>(kSamples * task.dim);
  Scalar* coefficients = room.take<Scalar>(2 * kGroup * groups_of(task.points) * L::kLanes);
  const int64_t of_vector = 2 * kGroup * groups_of(task.points) * L::kLanes;
  double* totals = room.take<double>(2 * of_vector);
  for (int64_t i = 0; i < 2 * of_vector; ++i) totals[i] = 0;
  const int64_t begin = panel_index * kPanel<L>, count = at_most(kPanel<L>, task.slices - begin);
  pack_panel<L>(static_cast<const T*>(task.directions), task.dim, task.slices, begin, count, panel);
  transpose_panel<L>(panel, task.dim, static_cast<Scalar*>(task.transposed));
  Scalar* z = static_cast<Scalar*>(projections);
  for (int64_t n = 0; n < task.samples; n += kSamples) {
    const int samples = static_cast<int>(at_most(kSamples, task.samples - n));
    Scalar* rows = z + n * kPanel<L>;
    project<L>(rows_of<L, T>(task, n, samples, copied), samples, task.dim, panel, rows);
    for (int v = 0; v < 2; ++v) add_sums<L, T>(task, rows + v * L::kLanes, samples, totals + v * of_vector);
  }
  double value = 0;
  for (int v = 0; v < 2; ++v) {
    value += weigh<L>(task, count - v * L::kLanes, totals + v * of_vector, coefficients);
    differentiate<L, T>(task, coefficients, z + v * L::kLanes, task.samples);
  }
  return value;
}

// The gradient of samples [begin, end) from what `fit_panel` left of `panels` panels, or added to what is there of others.
template <typename L, typename T>
void join_panels(const SigregTask& task, int64_t panels, bool add, int64_t begin, int64_t end, void* memory) {
  using Scalar = typename L::Scalar;
  const int64_t samples = end - begin, width = width_of<L>(task.dim);
  Scalar* gradient = Room(memory).template take<Scalar>(samples * width);
  for (int64_t i = 0; i < samples * width; ++i) gradient[i] = 0;
  project_back<L>(static_cast<const Scalar*>(task.gradients) + begin * kPanel<L>, task.samples * kPanel<L>, panels, samples,
                  static_cast<const Scalar*>(task.transposed), width, gradient);
  write_gradient<L>(gradient, samples, task.dim, add, static_cast<Scalar*>(task.grad_x) + begin * task.dim);
}

// Bytes of memory for the functions above, at any width of vectors: `samples` and `slices` as far as they are taken together.
constexpr int64_t kWidest = 32;

inline int64_t forward_room(const SigregTask& task, int64_t item) {
  const int64_t of_points = 2 * kGroup * groups_of(task.points) * kWidest;
  return (task.dim * kWidest + kSamples * (kWidest + task.dim) + of_points) * item + of_points * 8 + 8 * kCacheLine;
}

inline int64_t backward_room(const SigregTask& task, int64_t samples, int64_t item) {
  const int64_t of_points = 2 * kGroup * groups_of(task.points) * kWidest;
  return (samples * (2 * task.dim + 2 * kWidest) + task.dim * kWidest + of_points) * item + 8 * kCacheLine;
}

template <typename L, typename T>
constexpr SigregKernels kKernelsOf{kPanel<L>,       width_of<L>,     transpose_directions<L, T>, sum_panel<L, T>, differentiate_samples<L, T>,
                                   fit_panel<L, T>, join_panels<L, T>};

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
