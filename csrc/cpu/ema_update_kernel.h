// The inner loop of the EMA update, compiled once for each instruction set.
// No standard containers here: their inline functions would be merged across instruction sets by the linker.
#pragma once

#include <cmath>
#include <cstdint>

#include "jepa/ema_update.h"
#include "jepa/float_types.h"
#include "jepa/philox.h"

namespace jepa {
namespace {

template <typename T>
using Accumulator = decltype(to_float(T{}));  // double for double, float for all else

// torch.lerp's formula: the branch keeps the result exact at both ends.
template <typename A>
inline A lerp(A target, A online, A weight) {
  const A difference = online - target;
  return weight < A(0.5) ? std::fma(weight, difference, target) : std::fma(weight - A(1), difference, online);
}

template <typename Target, typename Online>
inline Accumulator<Target> updated(const Target* target, const Online* online, int64_t i, Accumulator<Target> weight) {
  using A = Accumulator<Target>;
  return lerp<A>(to_float(target[i]), static_cast<A>(to_float(online[i])), weight);
}

template <typename Target, typename Online>
void update_range(const EmaTensor& t, int64_t begin, int64_t end, double weight) {
  using A = Accumulator<Target>;
  Target* __restrict target = static_cast<Target*>(t.target);
  const Online* __restrict online = static_cast<const Online*>(t.online);
  const A w = static_cast<A>(weight);
  if (t.shadow == nullptr) {
    for (int64_t i = begin; i < end; ++i) target[i] = Cast<Target>::from(updated(target, online, i, w));
  } else if (t.shadow_dtype == DType::kBFloat16) {
    bf16* __restrict shadow = static_cast<bf16*>(t.shadow);
    for (int64_t i = begin; i < end; ++i) {
      const A value = updated(target, online, i, w);
      target[i] = Cast<Target>::from(value);
      shadow[i] = to_bf16(static_cast<float>(value));
    }
  } else {
    fp16* __restrict shadow = static_cast<fp16*>(t.shadow);
    for (int64_t i = begin; i < end; ++i) {
      const A value = updated(target, online, i, w);
      target[i] = Cast<Target>::from(value);
      shadow[i] = to_fp16(static_cast<float>(value));
    }
  }
}

// `begin` is a multiple of 8, the number of 16-bit values that one call of the generator yields.
template <typename Online>
void update_range_stochastic(const EmaTensor& t, int64_t begin, int64_t end, double weight, uint64_t seed) {
  bf16* target = static_cast<bf16*>(t.target);
  const Online* online = static_cast<const Online*>(t.online);
  const float w = static_cast<float>(weight);
  for (int64_t block = begin; block < end; block += 8) {
    const Philox4 random = philox4x32_10(seed, static_cast<uint64_t>(block / 8), t.index);
    const int64_t stop = block + 8 < end ? block + 8 : end;
    for (int64_t i = block; i < stop; ++i) {
      const float value = updated(target, online, i, w);
      target[i] = to_bf16_stochastic(value, random16(random, static_cast<int>(i - block)));
      if (t.shadow == nullptr) continue;
      if (t.shadow_dtype == DType::kBFloat16)
        static_cast<bf16*>(t.shadow)[i] = to_bf16(value);
      else
        static_cast<fp16*>(t.shadow)[i] = to_fp16(value);
    }
  }
}

template <typename Online>
void dispatch_target(const EmaTensor& t, int64_t begin, int64_t end, double weight, bool stochastic, uint64_t seed) {
  switch (t.target_dtype) {
    case DType::kFloat32:
      return update_range<float, Online>(t, begin, end, weight);
    case DType::kFloat64:
      return update_range<double, Online>(t, begin, end, weight);
    case DType::kFloat16:
      return update_range<fp16, Online>(t, begin, end, weight);
    default:
      if (stochastic) return update_range_stochastic<Online>(t, begin, end, weight, seed);
      return update_range<bf16, Online>(t, begin, end, weight);
  }
}

inline void update_chunk(const EmaTensor& t, int64_t begin, int64_t end, double weight, bool stochastic, uint64_t seed) {
  switch (t.online_dtype) {
    case DType::kFloat32:
      return dispatch_target<float>(t, begin, end, weight, stochastic, seed);
    case DType::kFloat64:
      return dispatch_target<double>(t, begin, end, weight, stochastic, seed);
    case DType::kFloat16:
      return dispatch_target<fp16>(t, begin, end, weight, stochastic, seed);
    default:
      return dispatch_target<bf16>(t, begin, end, weight, stochastic, seed);
  }
}

}  // namespace
}  // namespace jepa
