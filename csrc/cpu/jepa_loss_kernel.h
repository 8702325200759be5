// One range of rows of the JEPA loss, compiled once for each instruction set: layer norms of the target row in registers and L1 cache,
// then the loss or its gradient. No standard containers here: see ema_update_kernel.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "float_lanes.h"
#include "jepa/jepa_loss.h"

namespace jepa {

// Raw form of a call; null pointers stand for what is absent.
struct JepaLossTask {
  const void* pred;
  const void* target;
  DType pred_dtype, target_dtype;
  int64_t pred_stride, target_stride;  // elements from row to row
  int64_t width;
  const int64_t* rows;
  const void* weights;
  const void* norm_weight;
  const void* norm_bias;
  bool wants_loss;
  void* grad_pred;         // null: no gradient is wanted
  double gradient_factor;  // incoming gradient times scale
  JepaLossOptions options;
};

namespace {

template <typename L>
using VecOf = typename L::Vec;

template <typename L>
inline VecOf<L> absolute(VecOf<L> x) {
  return x < L::set(0) ? -x : x;
}

// 1, -1, and x itself where it is neither positive nor negative: 0 or NaN.
template <typename L>
inline VecOf<L> sign(VecOf<L> x) {
  return x > L::set(0) ? L::set(1) : (x < L::set(0) ? L::set(-1) : x);
}

template <typename L, LossKind Kind>
struct Penalty {
  using Vec = VecOf<L>;
  using Scalar = typename L::Scalar;
  Scalar parameter, inverse;

  Vec value(Vec d) const {
    if constexpr (Kind == LossKind::kAbsolute) return absolute<L>(d);
    if constexpr (Kind == LossKind::kSquare) return d * d * L::set(parameter);
    if constexpr (Kind == LossKind::kPower) {
      for (int i = 0; i < L::kLanes; ++i) d[i] = std::pow(std::fabs(d[i]), parameter) * inverse;
      return d;
    }
    const Vec size = absolute<L>(d);
    return size < L::set(parameter) ? d * d * L::set(Scalar(0.5) * inverse) : size - L::set(Scalar(0.5) * parameter);
  }

  Vec derivative(Vec d) const {
    if constexpr (Kind == LossKind::kAbsolute) return sign<L>(d);
    if constexpr (Kind == LossKind::kSquare) return d * L::set(2 * parameter);
    if constexpr (Kind == LossKind::kPower) {
      const Vec direction = sign<L>(d);
      for (int i = 0; i < L::kLanes; ++i) d[i] = d[i] == 0 ? Scalar(0) : std::pow(std::fabs(d[i]), parameter - 1);
      return d * direction;
    }
    return absolute<L>(d) < L::set(parameter) ? d * L::set(inverse) : sign<L>(d);
  }
};

// Element i as the first lane of a vector of copies, so that the tail of a row runs through the same code.
template <typename L, typename T>
inline VecOf<L> splat(const T* p, int64_t i) {
  return L::set(static_cast<typename L::Scalar>(to_float(p[i])));
}

template <typename T>
inline T rounded(double x) {
  return Cast<T>::from(static_cast<decltype(to_float(T{}))>(x));
}

// Mean and reciprocal standard deviation of `width` values; the variance is that of the centred values, as torch computes it.
template <typename L>
inline void statistics(const typename L::Scalar* x, int64_t width, double sum, double eps, typename L::Scalar* mean,
                       typename L::Scalar* rstd) {
  using Scalar = typename L::Scalar;
  *mean = static_cast<Scalar>(sum / static_cast<double>(width));
  const auto centre = L::set(*mean);
  VecOf<L> first = L::set(0), second = L::set(0);
  int64_t i = 0;
  for (; i + 2 * L::kLanes <= width; i += 2 * L::kLanes) {
    const auto a = L::load(x + i) - centre, b = L::load(x + i + L::kLanes) - centre;
    first = L::fma(a, a, first);
    second = L::fma(b, b, second);
  }
  double squares = L::sum(first + second);
  for (; i < width; ++i) {
    const double centred = static_cast<double>(x[i] - *mean);
    squares += centred * centred;
  }
  *rstd = static_cast<Scalar>(1.0 / std::sqrt(squares / static_cast<double>(width) + eps));
}

// Copies a row in the type of the arithmetic and returns its sum.
template <typename L, typename T>
inline double widen(const T* from, typename L::Scalar* to, int64_t width) {
  VecOf<L> first = L::set(0), second = L::set(0);
  int64_t i = 0;
  for (; i + 2 * L::kLanes <= width; i += 2 * L::kLanes) {
    const auto a = L::load(from + i), b = L::load(from + i + L::kLanes);
    L::store(to + i, a);
    L::store(to + i + L::kLanes, b);
    first += a;
    second += b;
  }
  double sum = L::sum(first + second);
  for (; i < width; ++i) {
    to[i] = static_cast<typename L::Scalar>(to_float(from[i]));
    sum += static_cast<double>(to[i]);
  }
  return sum;
}

// x <- (x - mean) * rstd * weight + bias; returns the new sum.
template <typename L>
inline double affine_norm(typename L::Scalar* x, int64_t width, double sum, const typename L::Scalar* weight,
                          const typename L::Scalar* bias, double eps) {
  using Scalar = typename L::Scalar;
  Scalar mean, rstd;
  statistics<L>(x, width, sum, eps, &mean, &rstd);
  const auto centre = L::set(mean), factor = L::set(rstd);
  auto total = L::set(0);
  int64_t i = 0;
  for (; i + L::kLanes <= width; i += L::kLanes) {
    auto y = (L::load(x + i) - centre) * factor;
    if (weight != nullptr) y *= L::load(weight + i);
    if (bias != nullptr) y += L::load(bias + i);
    L::store(x + i, y);
    total += y;
  }
  double result = L::sum(total);
  for (; i < width; ++i) {
    Scalar y = (x[i] - mean) * rstd;
    if (weight != nullptr) y *= weight[i];
    if (bias != nullptr) y += bias[i];
    x[i] = y;
    result += static_cast<double>(y);
  }
  return result;
}

template <typename L, typename Target>
inline void normalise(const JepaLossTask& task, const Target* target, typename L::Scalar* x, typename L::Scalar* mean,
                      typename L::Scalar* rstd) {
  using Scalar = typename L::Scalar;
  const JepaLossOptions& options = task.options;
  double sum = widen<L>(target, x, task.width);
  if (options.affine)
    sum = affine_norm<L>(x, task.width, sum, static_cast<const Scalar*>(task.norm_weight), static_cast<const Scalar*>(task.norm_bias),
                         options.affine_eps);
  *mean = 0;
  *rstd = 1;
  if (options.normalize) statistics<L>(x, task.width, sum, options.eps, mean, rstd);
}

template <typename L, typename Pred, LossKind Kind>
inline double loss_of_row(const Pred* pred, const typename L::Scalar* x, int64_t width, typename L::Scalar mean,
                          typename L::Scalar rstd, const Penalty<L, Kind>& penalty) {
  const auto centre = L::set(mean), factor = L::set(rstd);
  VecOf<L> first = L::set(0), second = L::set(0);
  int64_t i = 0;
  for (; i + 2 * L::kLanes <= width; i += 2 * L::kLanes) {
    const int64_t j = i + L::kLanes;
    first += penalty.value(L::load(pred + i) - (L::load(x + i) - centre) * factor);
    second += penalty.value(L::load(pred + j) - (L::load(x + j) - centre) * factor);
  }
  double sum = L::sum(first + second);
  for (; i < width; ++i) sum += static_cast<double>(penalty.value(splat<L>(pred, i) - (splat<L>(x, i) - centre) * factor)[0]);
  return sum;
}

template <typename L, typename Pred, LossKind Kind>
inline void gradient_of_row(const Pred* pred, const typename L::Scalar* x, int64_t width, typename L::Scalar mean,
                            typename L::Scalar rstd, const Penalty<L, Kind>& penalty, double weight, Pred* grad) {
  const auto centre = L::set(mean), factor = L::set(rstd), outer = L::set(static_cast<typename L::Scalar>(weight));
  int64_t i = 0;
  for (; i + L::kLanes <= width; i += L::kLanes)
    L::store(grad + i, penalty.derivative(L::load(pred + i) - (L::load(x + i) - centre) * factor) * outer);
  for (; i < width; ++i)
    grad[i] = rounded<Pred>(static_cast<double>((penalty.derivative(splat<L>(pred, i) - (splat<L>(x, i) - centre) * factor) * outer)[0]));
}

// Rows are spread over memory, so the hardware's prefetcher, which stops at a page's end, finds each of them late.
inline void prefetch_row(const void* row, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(static_cast<const char*>(row) + offset);
}

// Sum of the weighted losses of rows [begin, end), and their gradients, as far as they are wanted; `x` is room for one row.
template <typename L, typename Pred, typename Target, LossKind Kind>
double run_rows(const JepaLossTask& task, int64_t begin, int64_t end, typename L::Scalar* x) {
  using Scalar = typename L::Scalar;
  const Scalar parameter = static_cast<Scalar>(task.options.parameter);
  const Penalty<L, Kind> penalty{parameter, Scalar(1) / parameter};
  const Scalar* weights = static_cast<const Scalar*>(task.weights);
  double total = 0;
  for (int64_t r = begin; r < end; ++r) {
    const Pred* pred = static_cast<const Pred*>(task.pred) + r * task.pred_stride;
    const int64_t row = task.rows != nullptr ? task.rows[r] : r;
    if (row < 0) {  // padding
      if (task.grad_pred != nullptr)
        memset(static_cast<Pred*>(task.grad_pred) + r * task.width, 0, sizeof(Pred) * static_cast<size_t>(task.width));
      continue;
    }
    const Target* targets = static_cast<const Target*>(task.target);
    if (r + 1 < end) {
      const int64_t next = task.rows != nullptr ? (task.rows[r + 1] < 0 ? row : task.rows[r + 1]) : r + 1;
      prefetch_row(targets + next * task.target_stride, task.width * static_cast<int64_t>(sizeof(Target)));
      prefetch_row(pred + task.pred_stride, task.width * static_cast<int64_t>(sizeof(Pred)));
    }
    Scalar mean, rstd;
    normalise<L>(task, targets + row * task.target_stride, x, &mean, &rstd);
    const double weight = weights != nullptr ? static_cast<double>(weights[r]) : 1.0;
    if (task.wants_loss) total += weight * loss_of_row<L>(pred, x, task.width, mean, rstd, penalty);
    if (task.grad_pred != nullptr)
      gradient_of_row<L>(pred, x, task.width, mean, rstd, penalty, weight * task.gradient_factor,
                         static_cast<Pred*>(task.grad_pred) + r * task.width);
  }
  return total;
}

template <typename L, typename Pred, typename Target>
double dispatch_kind(const JepaLossTask& task, int64_t begin, int64_t end, typename L::Scalar* x) {
  switch (task.options.kind) {
    case LossKind::kAbsolute:
      return run_rows<L, Pred, Target, LossKind::kAbsolute>(task, begin, end, x);
    case LossKind::kSmooth:
      return run_rows<L, Pred, Target, LossKind::kSmooth>(task, begin, end, x);
    case LossKind::kSquare:
      return run_rows<L, Pred, Target, LossKind::kSquare>(task, begin, end, x);
    default:
      return run_rows<L, Pred, Target, LossKind::kPower>(task, begin, end, x);
  }
}

template <typename L, typename Pred>
double dispatch_target(const JepaLossTask& task, int64_t begin, int64_t end, typename L::Scalar* x) {
  switch (task.target_dtype) {
    case DType::kBFloat16:
      return dispatch_kind<L, Pred, bf16>(task, begin, end, x);
    case DType::kFloat16:
      return dispatch_kind<L, Pred, fp16>(task, begin, end, x);
    default:
      return dispatch_kind<L, Pred, float>(task, begin, end, x);
  }
}

inline double float_rows(const JepaLossTask& task, int64_t begin, int64_t end, void* room) {
  float* x = static_cast<float*>(room);
  switch (task.pred_dtype) {
    case DType::kBFloat16:
      return dispatch_target<FloatLanes, bf16>(task, begin, end, x);
    case DType::kFloat16:
      return dispatch_target<FloatLanes, fp16>(task, begin, end, x);
    default:
      return dispatch_target<FloatLanes, float>(task, begin, end, x);
  }
}

}  // namespace
}  // namespace jepa
