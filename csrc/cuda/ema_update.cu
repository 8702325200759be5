// EMA target update on NVIDIA GPUs: many tensors in one launch, found through a table of addresses on the device.
#include <cuda_runtime.h>

#include <string>
#include <type_traits>

#include "jepa/ema_update_cuda.h"
#include "jepa/float_types.h"
#include "jepa/lerp_cuda.h"
#include "jepa/philox.h"

namespace jepa {
namespace {

constexpr int kThreads = 256;
constexpr int kRow = 5;  // target, online, shadow, element count, place in the caller's list

// Eight elements a thread and step: 16-byte accesses for 16-bit types, and one call of the random generator.
constexpr int kVector = 8;

template <typename T>
struct alignas(sizeof(T) * kVector < 16 ? sizeof(T) * kVector : 16) Pack {
  T value[kVector];
};

struct NoShadow {};

template <typename Target>
using Accumulator = decltype(to_float(Target{}));

template <typename Target, bool kStochastic>
__device__ inline Target rounded(Accumulator<Target> value, const Philox4& random, int lane) {
  if constexpr (kStochastic)
    return to_bf16_stochastic(value, random16(random, lane));
  else
    return Cast<Target>::from(value);
}

template <typename Target, typename Online, typename Shadow, bool kStochastic>
__global__ void __launch_bounds__(kThreads)
    ema_update_kernel(const int64_t* __restrict__ table, const int32_t* __restrict__ chunks, EmaStep step, int chunk,
                      bool aligned) {
  using A = Accumulator<Target>;
  const int64_t* row = table + kRow * static_cast<int64_t>(chunks[2 * blockIdx.x]);
  const int64_t begin = static_cast<int64_t>(chunks[2 * blockIdx.x + 1]) * chunk;
  Target* target = reinterpret_cast<Target*>(row[0]);
  const Online* online = reinterpret_cast<const Online*>(row[1]);
  Shadow* shadow = reinterpret_cast<Shadow*>(row[2]);
  const int64_t end = min(begin + chunk, row[3]);
  const uint32_t index = static_cast<uint32_t>(row[4]);
  const A w = static_cast<A>(step.momentum == nullptr ? step.weight : 1.0 - *step.momentum);
  const uint64_t seed = step.seed_address == nullptr ? step.seed : static_cast<uint64_t>(*step.seed_address);

  for (int64_t first = begin + threadIdx.x * kVector; first < end; first += kThreads * kVector) {
    Philox4 random{};
    if constexpr (kStochastic) random = philox4x32_10(seed, static_cast<uint64_t>(first / 8), index);
    if (aligned && first + kVector <= end) {
      Pack<Target> old = *reinterpret_cast<const Pack<Target>*>(target + first);
      const Pack<Online> fresh = *reinterpret_cast<const Pack<Online>*>(online + first);
      Pack<Shadow> copy;
#pragma unroll
      for (int lane = 0; lane < kVector; ++lane) {
        const A value = lerp(static_cast<A>(to_float(old.value[lane])), static_cast<A>(to_float(fresh.value[lane])), w);
        old.value[lane] = rounded<Target, kStochastic>(value, random, lane);
        if constexpr (!std::is_same_v<Shadow, NoShadow>)
          copy.value[lane] = Cast<Shadow>::from(static_cast<float>(value));
      }
      *reinterpret_cast<Pack<Target>*>(target + first) = old;
      if constexpr (!std::is_same_v<Shadow, NoShadow>) *reinterpret_cast<Pack<Shadow>*>(shadow + first) = copy;
    } else {
#pragma unroll  // the random words stay in registers only under constant indices
      for (int lane = 0; lane < kVector; ++lane) {
        if (first + lane >= end) continue;
        const A value =
            lerp(static_cast<A>(to_float(target[first + lane])), static_cast<A>(to_float(online[first + lane])), w);
        target[first + lane] = rounded<Target, kStochastic>(value, random, lane);
        if constexpr (!std::is_same_v<Shadow, NoShadow>)
          shadow[first + lane] = Cast<Shadow>::from(static_cast<float>(value));
      }
    }
  }
}

template <typename Target, typename Online, typename Shadow, bool kStochastic>
void launch(const EmaPlan& plan, const EmaStep& step, cudaStream_t stream) {
  ema_update_kernel<Target, Online, Shadow, kStochastic><<<static_cast<unsigned>(plan.programs), kThreads, 0, stream>>>(
      plan.table, plan.chunks, step, plan.chunk, plan.aligned);
}

template <typename Target, typename Online, typename Shadow>
void choose_rounding(const EmaPlan& plan, const EmaStep& step, cudaStream_t stream) {
  if constexpr (std::is_same_v<Target, bf16>) {
    if (step.stochastic_rounding) return launch<Target, Online, Shadow, true>(plan, step, stream);
  }
  launch<Target, Online, Shadow, false>(plan, step, stream);
}

template <typename Target, typename Online>
void choose_shadow(const EmaPlan& plan, const EmaStep& step, cudaStream_t stream) {
  switch (plan.shadow_dtype) {
    case -1:
      return choose_rounding<Target, Online, NoShadow>(plan, step, stream);
    case static_cast<int>(DType::kBFloat16):
      return choose_rounding<Target, Online, bf16>(plan, step, stream);
    case static_cast<int>(DType::kFloat16):
      return choose_rounding<Target, Online, fp16>(plan, step, stream);
  }
  fail("ema_update: shadow dtype code " + std::to_string(plan.shadow_dtype) + " is neither bfloat16 nor float16");
}

template <typename Target>
void choose_online(const EmaPlan& plan, const EmaStep& step, cudaStream_t stream) {
  switch (plan.online_dtype) {
    case DType::kFloat32:
      return choose_shadow<Target, float>(plan, step, stream);
    case DType::kBFloat16:
      return choose_shadow<Target, bf16>(plan, step, stream);
    case DType::kFloat16:
      return choose_shadow<Target, fp16>(plan, step, stream);
    default:
      fail(std::string("ema_update: no kernel for an online tensor of ") + name_of(plan.online_dtype) +
           " and a target of " + name_of(plan.target_dtype));
  }
}

}  // namespace

void ema_update_cuda(const EmaPlan& plan, const EmaStep& step, void* stream_address) {
  if (plan.programs == 0) return;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
  switch (plan.target_dtype) {
    case DType::kFloat32:
      choose_online<float>(plan, step, stream);
      break;
    case DType::kFloat64:
      if (plan.online_dtype != DType::kFloat64) fail("ema_update: a float64 target takes a float64 online tensor");
      choose_shadow<double, double>(plan, step, stream);
      break;
    case DType::kBFloat16:
      choose_online<bf16>(plan, step, stream);
      break;
    case DType::kFloat16:
      choose_online<fp16>(plan, step, stream);
      break;
    default:
      fail(std::string("ema_update: target dtype ") + name_of(plan.target_dtype) + " is not floating point");
  }
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("ema_update: launch failed: ") + cudaGetErrorString(error));
}

}  // namespace jepa
