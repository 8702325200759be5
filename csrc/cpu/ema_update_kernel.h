// The inner loop of the EMA update, compiled once for each instruction set.
// No standard containers here: their inline functions would be merged across instruction sets by the linker.
#pragma once

#include <cstdint>

#include "jepa/ema_update.h"
#include "jepa/float_types.h"
#include "jepa/philox.h"
#include "lerp.h"
#include "shadow_store.h"

namespace jepa {
namespace {

template <typename T>
using Accumulator = decltype(to_float(T{}));  // double for double, float for all else

template <typename Target, typename Online>
inline Accumulator<Target> updated(const Target* target, const Online* online, int64_t i, Accumulator<Target> weight) {
  using A = Accumulator<Target>;
  return lerp<A>(to_float(target[i]), static_cast<A>(to_float(online[i])), weight);
}

template <typename Target, typename Online>
void update_range(const EmaTensor& t, int64_t begin, int64_t end, const EmaCpuStep& step) {
  using A = Accumulator<Target>;
  Target* __restrict target = static_cast<Target*>(t.target);
  const Online* __restrict online = static_cast<const Online*>(t.online);
  const A w = static_cast<A>(step.weight);
  if (t.shadow == nullptr) {
    for (int64_t i = begin; i < end; ++i) target[i] = Cast<Target>::from(updated(target, online, i, w));
    return;
  }
  float values[kShadowBlock];
  for (int64_t block = begin; block < end; block += kShadowBlock) {
    const int64_t count = end - block < kShadowBlock ? end - block : kShadowBlock;
    for (int64_t i = 0; i < count; ++i) {
      const A value = updated(target, online, block + i, w);
      target[block + i] = Cast<Target>::from(value);
      values[i] = static_cast<float>(value);
    }
    store_shadow(t.shadow, t.shadow_dtype, block, values, count, step.stream);
  }
  if (step.stream) stream_fence();
}

// The random words of kShadowBlock elements, one array a word, so that the loop over blocks of 8 elements vectorises.
struct RandomWords {
  uint32_t word[4][kShadowBlock / 8];
};

inline void draw(RandomWords& random, uint64_t seed, uint64_t first_block, uint32_t index, int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b) {
    const Philox4 four = philox4x32_10(seed, first_block + static_cast<uint64_t>(b), index);
    for (int w = 0; w < 4; ++w) random.word[w][b] = four.word[w];
  }
}

// `begin` is a multiple of 8, the number of 16-bit values that one call of the generator yields.
template <typename Online>
void update_range_stochastic(const EmaTensor& t, int64_t begin, int64_t end, const EmaCpuStep& step) {
  bf16* __restrict target = static_cast<bf16*>(t.target);
  const Online* __restrict online = static_cast<const Online*>(t.online);
  const float w = static_cast<float>(step.weight);
  RandomWords random;
  float values[kShadowBlock];
  for (int64_t block = begin; block < end; block += kShadowBlock) {
    const int64_t count = end - block < kShadowBlock ? end - block : kShadowBlock;
    draw(random, step.seed, static_cast<uint64_t>(block / 8), t.index, (count + 7) / 8);
    for (int64_t i = 0; i < count; ++i) values[i] = updated(target, online, block + i, w);
    for (int64_t i = 0; i < count; ++i) {
      const int lane = static_cast<int>(i % 8);
      target[block + i] = to_bf16_stochastic(values[i], random.word[lane >> 1][i / 8] >> (16 * (lane & 1)));
    }
    if (t.shadow != nullptr) store_shadow(t.shadow, t.shadow_dtype, block, values, count, step.stream);
  }
  if (step.stream) stream_fence();
}

template <typename Online>
void dispatch_target(const EmaTensor& t, int64_t begin, int64_t end, const EmaCpuStep& step) {
  switch (t.target_dtype) {
    case DType::kFloat32:
      return update_range<float, Online>(t, begin, end, step);
    case DType::kFloat64:
      return update_range<double, Online>(t, begin, end, step);
    case DType::kFloat16:
      return update_range<fp16, Online>(t, begin, end, step);
    default:
      if (step.stochastic_rounding) return update_range_stochastic<Online>(t, begin, end, step);
      return update_range<bf16, Online>(t, begin, end, step);
  }
}

inline void update_chunk(const EmaTensor& t, int64_t begin, int64_t end, const EmaCpuStep& step) {
  switch (t.online_dtype) {
    case DType::kFloat32:
      return dispatch_target<float>(t, begin, end, step);
    case DType::kFloat64:
      return dispatch_target<double>(t, begin, end, step);
    case DType::kFloat16:
      return dispatch_target<fp16>(t, begin, end, step);
    default:
      return dispatch_target<bf16>(t, begin, end, step);
  }
}

}  // namespace
}  // namespace jepa
