// Characteristic-function sums of SIGReg and their gradient, compiled once for each instruction set. Projections are made tile by tile; one
// sine and cosine each, and the points follow by angle addition. No standard containers here: see ema_update_kernel.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "float_lanes.h"
#include "jepa/sigreg.h"
#include "sigreg_angles.h"
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

// Adds the sums of `samples` projections of one vector of slices, rows kPanel apart, to totals[point][2][lane], which has whole rows.
// `angles` is room for kSamples of each row and of angle 0.
template <typename L, typename T>
void add_sums(const SigregTask& task, const typename L::Scalar* z, int samples, Angle<L>* angles, double* totals) {
  const int64_t rows = rows_of_points(task.points), of_point = 2 * L::kLanes;
  for (int i = 0; i < samples; ++i) first_angles<L>(rounded_to<L, T>(L::load(z + i * kPanel<L>)), task.step, rows, kSamples, angles + i);
  for (int64_t r = 1; r <= rows; ++r)
    add_row(angles + r * kSamples, angles + (rows - r) * kSamples, angles + rows * kSamples, samples, totals + (r - 1) * of_point, rows * of_point);
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
  const int64_t of_vector = 2 * kRow * rows_of_points(task.points) * L::kLanes;
  double* totals = room.take<double>(2 * of_vector);
  Angle<L>* angles = room.take<Angle<L>>(kSamples * (rows_of_points(task.points) + 1));
  for (int64_t i = 0; i < 2 * of_vector; ++i) totals[i] = 0;
  const int64_t begin = panel_index * kPanel<L>, count = at_most(kPanel<L>, task.slices - begin);
  pack_panel<L>(static_cast<const T*>(task.directions), task.dim, task.slices, begin, count, panel);
  for (int64_t n = 0; n < task.samples; n += kSamples) {
    const int samples = static_cast<int>(at_most(kSamples, task.samples - n));
    project<L>(rows_of<L, T>(task, n, samples, copied), samples, task.dim, panel, z);
    add_sums<L, T>(task, z, samples, angles, totals);
    if (count > L::kLanes) add_sums<L, T>(task, z + L::kLanes, samples, angles, totals + of_vector);
  }
  write_sums<L>(task, begin, at_most(L::kLanes, count), totals);
  if (count > L::kLanes) write_sums<L>(task, begin + L::kLanes, count - L::kLanes, totals + of_vector);
}

// What the points count in the gradient of one vector of slices, step * j * (grad_sine[j], grad_cosine[j]), zero behind the last point:
// [row][4][2][lane].
template <typename L>
void read_coefficients(const SigregTask& task, int64_t begin, int64_t count, typename L::Scalar* coefficients) {
  using Scalar = typename L::Scalar;
  const Scalar* grad_cosine = static_cast<const Scalar*>(task.grad_sums) + begin;
  const Scalar* grad_sine = grad_cosine + task.points * task.slices;
  const int64_t rows = rows_of_points(task.points);
  for (int64_t j = 1; j <= kRow * rows; ++j) {
    const auto factor = L::set(static_cast<Scalar>(task.step * static_cast<double>(j)));
    const bool there = j < task.points;
    Scalar* to = coefficients + place_of_point(j, rows) * 2 * L::kLanes;
    L::store(to, there ? factor * load_some<L>(grad_sine + j * task.slices, count) : L::set(0));
    L::store(to + L::kLanes, there ? factor * load_some<L>(grad_cosine + j * task.slices, count) : L::set(0));
  }
}

// The same from the totals of `count` slices, for the statistic of which task.of_value is the share of each; returns what they add to it.
template <typename L>
double weigh(const SigregTask& task, int64_t count, const double* totals, typename L::Scalar* coefficients) {
  using Scalar = typename L::Scalar;
  const Scalar *phi = static_cast<const Scalar*>(task.phi), *weights = static_cast<const Scalar*>(task.weights);
  const double samples = static_cast<double>(task.samples);
  const int64_t rows = rows_of_points(task.points);
  double value = 0;
  for (int64_t j = 1; j <= kRow * rows; ++j) {
    const bool counts = j < task.points;
    const double weight = counts ? task.of_value * static_cast<double>(weights[j]) : 0, target = counts ? static_cast<double>(phi[j]) : 0;
    const double factor = 2 * weight * task.step * static_cast<double>(j);
    const double* at = totals + 2 * (j - 1) * L::kLanes;
    Scalar* to = coefficients + place_of_point(j, rows) * 2 * L::kLanes;
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
  return value;
}

// Overwrites projections of one vector of slices, kPanel apart, by their gradient: step * sum over j of j * (grad_sine[j] cos -
// grad_cosine[j] sin), a row of points at a time by Clenshaw's rule. Rows is their number, or 0 where it is not known to the compiler, which
// otherwise keeps the angles in registers; `room` holds kTogether of each row and of angle 0.
template <typename L, typename T, int Rows>
void differentiate_rows(const SigregTask& task, const typename L::Scalar* coefficients, typename L::Scalar* z, int64_t samples, Angle<L>* room) {
  using Vec = typename L::Vec;
  const int64_t rows = Rows > 0 ? Rows : rows_of_points(task.points);
  const auto step = [&](int64_t n, auto together) {
    constexpr int kCount = decltype(together)::value;
    Angle<L> registers[kCount * (Rows + 1)];
    Angle<L>* angles = Rows > 0 ? registers : room;
    Vec low[kCount], high[kCount], twice[kCount];  // two sums: a shorter chain
#pragma GCC unroll 2
    for (int i = 0; i < kCount; ++i) {
      first_angles<L>(rounded_to<L, T>(L::load(z + (n + i) * kPanel<L>)), task.step, rows, kCount, angles + i);
      low[i] = high[i] = L::set(0);
      twice[i] = angles[rows * kCount + i].cosine + angles[rows * kCount + i].cosine;
    }
#pragma GCC unroll 4
    for (int64_t r = 1; r <= rows; ++r) {
      const typename L::Scalar* from = coefficients + (r - 1) * 2 * kRow * L::kLanes;
      const auto of_cosine = [&](int j) { return L::load(from + 2 * j * L::kLanes); };
      const auto of_sine = [&](int j) { return L::load(from + (2 * j + 1) * L::kLanes); };
#pragma GCC unroll 2
      for (int i = 0; i < kCount; ++i) {
        Vec c[kRow], s[kRow];  // partial sums from the back
        c[3] = of_cosine(3), s[3] = of_sine(3);
        c[2] = L::fma(twice[i], c[3], of_cosine(2)), s[2] = L::fma(twice[i], s[3], of_sine(2));
        c[1] = L::fma(twice[i], c[2], of_cosine(1) - c[3]), s[1] = L::fma(twice[i], s[2], of_sine(1) - s[3]);
        c[0] = L::fma(twice[i], c[1], of_cosine(0) - c[2]), s[0] = L::fma(twice[i], s[1], of_sine(0) - s[2]);
        const Angle<L>&at = angles[r * kCount + i], &mirrored = angles[(rows - r) * kCount + i];
        low[i] = L::fma(c[0], at.cosine, L::fma(-s[0], at.sine, low[i]));
        high[i] = L::fma(c[1], mirrored.cosine, L::fma(s[1], mirrored.sine, high[i]));
      }
    }
#pragma GCC unroll 2
    for (int i = 0; i < kCount; ++i) L::store(z + (n + i) * kPanel<L>, low[i] - high[i]);
  };
  int64_t n = 0;
  for (; n + kTogether <= samples; n += kTogether) step(n, std::integral_constant<int, kTogether>{});
  for (; n < samples; ++n) step(n, std::integral_constant<int, 1>{});
}

template <typename L, typename T>
void differentiate(const SigregTask& task, const typename L::Scalar* coefficients, typename L::Scalar* z, int64_t samples, Angle<L>* room) {
  constexpr int kPublished = 4;  // rows of 17 points
  if (rows_of_points(task.points) == kPublished) return differentiate_rows<L, T, kPublished>(task, coefficients, z, samples, room);
  differentiate_rows<L, T, 0>(task, coefficients, z, samples, room);
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
  Scalar* coefficients = room.take<Scalar>(2 * kRow * rows_of_points(task.points) * L::kLanes);
  Angle<L>* angles = room.take<Angle<L>>(kTogether * (rows_of_points(task.points) + 1));
  const Scalar* x = rows_of<L, T>(task, begin, samples, copied);
  for (int64_t i = 0; i < samples * width; ++i) gradient[i] = 0;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t k = p * kPanel<L>, count = at_most(kPanel<L>, task.slices - k);
    pack_panel<L>(static_cast<const T*>(task.directions), task.dim, task.slices, k, count, panel);
    project<L>(x, samples, task.dim, panel, z);
    for (int64_t v = 0; v < kPanel<L>; v += L::kLanes) {  // without slices the coefficients, and so the gradients, are zero
      read_coefficients<L>(task, k + v, v < count ? at_most(L::kLanes, count - v) : 0, coefficients);
      differentiate<L, T>(task, coefficients, z + v, samples, angles);
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
  Scalar* coefficients = room.take<Scalar>(2 * kRow * rows_of_points(task.points) * L::kLanes);
  const int64_t of_vector = 2 * kRow * rows_of_points(task.points) * L::kLanes;
  double* totals = room.take<double>(2 * of_vector);
  Angle<L>* angles = room.take<Angle<L>>(kSamples * (rows_of_points(task.points) + 1));
  for (int64_t i = 0; i < 2 * of_vector; ++i) totals[i] = 0;
  const int64_t begin = panel_index * kPanel<L>, count = at_most(kPanel<L>, task.slices - begin);
  pack_panel<L>(static_cast<const T*>(task.directions), task.dim, task.slices, begin, count, panel);
  transpose_panel<L>(panel, task.dim, static_cast<Scalar*>(task.transposed));
  Scalar* z = static_cast<Scalar*>(projections);
  for (int64_t n = 0; n < task.samples; n += kSamples) {
    const int samples = static_cast<int>(at_most(kSamples, task.samples - n));
    Scalar* rows = z + n * kPanel<L>;
    project<L>(rows_of<L, T>(task, n, samples, copied), samples, task.dim, panel, rows);
    for (int v = 0; v < 2; ++v) add_sums<L, T>(task, rows + v * L::kLanes, samples, angles, totals + v * of_vector);
  }
  double value = 0;
  for (int v = 0; v < 2; ++v) {
    value += weigh<L>(task, count - v * L::kLanes, totals + v * of_vector, coefficients);
    differentiate<L, T>(task, coefficients, z + v * L::kLanes, task.samples, angles);
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

inline int64_t room_of_points(const SigregTask& task, int64_t item, int64_t angles) {
  const int64_t rows = rows_of_points(task.points);
  return (2 * kRow * rows + angles * (rows + 1)) * kWidest * item;  // coefficients; angles, of half as many lanes each
}

inline int64_t forward_room(const SigregTask& task, int64_t item) {
  const int64_t totals = 2 * kRow * rows_of_points(task.points) * kWidest * 8;
  return (task.dim * kWidest + kSamples * (kWidest + task.dim)) * item + room_of_points(task, item, kSamples) + totals + 8 * kCacheLine;
}

inline int64_t backward_room(const SigregTask& task, int64_t samples, int64_t item) {
  return (samples * (2 * task.dim + 2 * kWidest) + task.dim * kWidest) * item + room_of_points(task, item, kTogether) + 8 * kCacheLine;
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
