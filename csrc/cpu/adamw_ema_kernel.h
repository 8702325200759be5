// The inner loops of AdamW with EMA, compiled once for each instruction set.
// No standard containers here: their inline functions would be merged across instruction sets by the linker.
#pragma once

#include <cmath>
#include <cstdint>

#include "jepa/adamw_ema.h"
#include "jepa/float_types.h"
#include "lerp.h"
#include "shadow_store.h"

namespace jepa {
namespace {

constexpr int64_t kLanes = 32;  // independent sums: their order does not depend on the vector width

template <typename Grad>
double sum_squares_range(const Grad* grad, int64_t count) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = static_cast<double>(to_float(grad[i + lane]));
      lanes[lane] = std::fma(value, value, lanes[lane]);
    }
  }
  for (int64_t lane = 0; i < count; ++i, ++lane) {
    const double value = static_cast<double>(to_float(grad[i]));
    lanes[lane] = std::fma(value, value, lanes[lane]);
  }
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

inline double sum_squares_chunk(const AdamWTensor& t, int64_t begin, int64_t end) {
  switch (t.grad_dtype) {
    case DType::kFloat32:
      return sum_squares_range(static_cast<const float*>(t.grad) + begin, end - begin);
    case DType::kFloat16:
      return sum_squares_range(static_cast<const fp16*>(t.grad) + begin, end - begin);
    default:
      return sum_squares_range(static_cast<const bf16*>(t.grad) + begin, end - begin);
  }
}

// m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  p <- (1 - lr wd) p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) +
// eps); k <- momentum k + (1 - momentum) p
template <typename Grad, bool kTarget>
void update_range(const AdamWTensor& t, int64_t begin, int64_t count, const AdamWCoefficients& coefficients) {
  const AdamWCoefficients c = coefficients;  // a copy: stores to the tensors cannot change it, so it stays in registers
  float* __restrict param = t.param + begin;
  float* __restrict exp_avg = t.exp_avg + begin;
  float* __restrict exp_avg_sq = t.exp_avg_sq + begin;
  float* __restrict target = kTarget ? t.target + begin : nullptr;
  const Grad* __restrict grad = static_cast<const Grad*>(t.grad) + begin;
  for (int64_t i = 0; i < count; ++i) {
    const float g = to_float(grad[i]) * c.grad_factor;
    const float m = lerp(exp_avg[i], g, c.weight1);
    const float v = std::fma(c.weight2 * g, g, c.beta2 * exp_avg_sq[i]);
    const float denominator = std::fma(std::sqrt(v), c.inverse_correction2, c.eps);
    const float p = std::fma(-c.step_size, m / denominator, param[i] * c.decay);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    param[i] = p;
    if (kTarget) target[i] = lerp(target[i], p, c.target_weight);
  }
}

template <typename Grad>
void adamw_range(const AdamWTensor& t, int64_t begin, int64_t end, const AdamWCoefficients& c) {
  for (int64_t block = begin; block < end; block += kShadowBlock) {
    const int64_t count = end - block < kShadowBlock ? end - block : kShadowBlock;
    if (t.target != nullptr)
      update_range<Grad, true>(t, block, count, c);
    else
      update_range<Grad, false>(t, block, count, c);
    if (t.param_shadow != nullptr)
      store_shadow(t.param_shadow, t.param_shadow_dtype, block, t.param + block, count, c.stream);
    if (t.target_shadow != nullptr)
      store_shadow(t.target_shadow, t.target_shadow_dtype, block, t.target + block, count, c.stream);
  }
  if (c.stream) stream_fence();
}

inline void adamw_chunk(const AdamWTensor& t, int64_t begin, int64_t end, const AdamWCoefficients& c) {
  switch (t.grad_dtype) {
    case DType::kFloat32:
      return adamw_range<float>(t, begin, end, c);
    case DType::kFloat16:
      return adamw_range<fp16>(t, begin, end, c);
    default:
      return adamw_range<bf16>(t, begin, end, c);
  }
}

}  // namespace
}  // namespace jepa
