// AdamW with EMA on NVIDIA GPUs: a norm pass over the gradients, one block for what all tensors share, one pass over
// every parameter.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "jepa/adamw_ema_cuda.h"
#include "jepa/float_types.h"
#include "jepa/lerp_cuda.h"

namespace jepa {
namespace {

constexpr int kThreads = 256;
constexpr int kRow = 9;  // param, exp_avg, exp_avg_sq, step, target, param shadow, target shadow, element count, group
constexpr int kHyper = 5;  // lr, beta1, beta2, eps, weight decay
constexpr double kClipEps = 1e-6;

// Four elements a thread and step: 16-byte accesses of float32, and few enough registers for eight tensors at once.
constexpr int kVector = 4;

template <typename T>
struct alignas(sizeof(T) * kVector) Pack {
  T value[kVector];
};

struct NoShadow {};

template <typename Grad>
__global__ void __launch_bounds__(kThreads)
    sum_of_squares_kernel(const int64_t* __restrict__ table, const int64_t* __restrict__ grads,
                          const int32_t* __restrict__ chunks, double* __restrict__ partials, int chunk, bool aligned) {
  const int64_t place = chunks[2 * static_cast<int64_t>(blockIdx.x)];
  const int64_t begin = static_cast<int64_t>(chunks[2 * static_cast<int64_t>(blockIdx.x) + 1]) * chunk;
  const Grad* grad = reinterpret_cast<const Grad*>(grads[place]);
  const int64_t end = min(begin + chunk, table[kRow * place + 7]);
  float sum = 0.0f;
  for (int64_t first = begin + threadIdx.x * kVector; first < end; first += kThreads * kVector) {
    if (aligned && first + kVector <= end) {
      const Pack<Grad> four = *reinterpret_cast<const Pack<Grad>*>(grad + first);
#pragma unroll
      for (int lane = 0; lane < kVector; ++lane)
        sum = fmaf(to_float(four.value[lane]), to_float(four.value[lane]), sum);
    } else {
      for (int64_t i = first; i < end && i < first + kVector; ++i)
        sum = fmaf(to_float(grad[i]), to_float(grad[i]), sum);
    }
  }
  __shared__ double sums[kThreads];
  sums[threadIdx.x] = static_cast<double>(sum);
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {  // a fixed order: the same bits at every run
    if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
    __syncthreads();
  }
  if (threadIdx.x == 0) partials[blockIdx.x] = sums[0];
}

__global__ void __launch_bounds__(kThreads)
    prepare_kernel(const int64_t* __restrict__ table, int64_t tensors, const double* __restrict__ hyper,
                   const double* __restrict__ control, const double* __restrict__ squares, double* __restrict__ status,
                   float* __restrict__ coefficients, float* __restrict__ shared) {
  const double norm = squares == nullptr ? 0.0 : sqrt(squares[0]) / control[2];
  const bool skip = control[3] != 0.0 || !isfinite(norm);
  for (int64_t place = threadIdx.x; place < tensors; place += kThreads) {
    const int64_t* row = table + kRow * place;
    const double* group = hyper + kHyper * row[8];
    float* step = reinterpret_cast<float*>(row[3]);
    const double steps = static_cast<double>(*step + 1.0f);
    coefficients[2 * place] = static_cast<float>(group[0] / (1.0 - pow(group[1], steps)));
    coefficients[2 * place + 1] = static_cast<float>(1.0 / sqrt(1.0 - pow(group[2], steps)));
    if (!skip) *step += 1.0f;
  }
  if (threadIdx.x == 0) {
    shared[0] = static_cast<float>(fmin(1.0, control[1] / (norm + kClipEps)) / control[2]);
    shared[1] = static_cast<float>(1.0 - control[0]);
    shared[2] = skip ? 1.0f : 0.0f;
    status[0] = norm;
    status[1] = skip ? 1.0 : 0.0;
    status[2] += skip ? 1.0 : 0.0;
  }
}

// What the elements of one tensor need, in float32.
struct Factors {
  float decay, weight1, beta2, weight2, eps, step_size, correction2, grad_factor, target_weight;
};

struct Element {
  float param, exp_avg, exp_avg_sq, target;
};

template <bool kTarget>
__device__ inline void advance(Element& e, float grad, const Factors& f) {
  const float g = grad * f.grad_factor;
  e.exp_avg = lerp(e.exp_avg, g, f.weight1);
  e.exp_avg_sq = fmaf(f.weight2 * g, g, f.beta2 * e.exp_avg_sq);
  const float denominator = fmaf(__fsqrt_rn(e.exp_avg_sq), f.correction2, f.eps);
  e.param = fmaf(-f.step_size, __fdiv_rn(e.exp_avg, denominator), e.param * f.decay);
  if constexpr (kTarget) e.target = lerp(e.target, e.param, f.target_weight);
}

template <typename Grad, bool kTarget, typename ParamShadow, typename TargetShadow>
__global__ void __launch_bounds__(kThreads)
    step_kernel(const int64_t* __restrict__ table, const int64_t* __restrict__ grads,
                const int32_t* __restrict__ chunks, const double* __restrict__ hyper,
                const float* __restrict__ coefficients, const float* __restrict__ shared, int chunk, bool aligned) {
  if (shared[2] != 0.0f) return;
  const int64_t place = chunks[2 * static_cast<int64_t>(blockIdx.x)];
  const int64_t begin = static_cast<int64_t>(chunks[2 * static_cast<int64_t>(blockIdx.x) + 1]) * chunk;
  const int64_t* row = table + kRow * place;
  const double* group = hyper + kHyper * row[8];
  const int64_t end = min(begin + chunk, row[7]);
  float* param = reinterpret_cast<float*>(row[0]);
  float* exp_avg = reinterpret_cast<float*>(row[1]);
  float* exp_avg_sq = reinterpret_cast<float*>(row[2]);
  float* target = reinterpret_cast<float*>(row[4]);
  ParamShadow* param_shadow = reinterpret_cast<ParamShadow*>(row[5]);
  TargetShadow* target_shadow = reinterpret_cast<TargetShadow*>(row[6]);
  const Grad* grad = reinterpret_cast<const Grad*>(grads[place]);
  const Factors factors{static_cast<float>(1.0 - group[0] * group[4]),
                        static_cast<float>(1.0 - group[1]),
                        static_cast<float>(group[2]),
                        static_cast<float>(1.0 - group[2]),
                        static_cast<float>(group[3]),
                        coefficients[2 * place],
                        coefficients[2 * place + 1],
                        shared[0],
                        shared[1]};

  for (int64_t first = begin + threadIdx.x * kVector; first < end; first += kThreads * kVector) {
    if (aligned && first + kVector <= end) {
      const Pack<Grad> g = *reinterpret_cast<const Pack<Grad>*>(grad + first);
      Pack<float> p = *reinterpret_cast<const Pack<float>*>(param + first);
      Pack<float> m = *reinterpret_cast<const Pack<float>*>(exp_avg + first);
      Pack<float> v = *reinterpret_cast<const Pack<float>*>(exp_avg_sq + first);
      Pack<float> k{};
      if constexpr (kTarget) k = *reinterpret_cast<const Pack<float>*>(target + first);
      Pack<ParamShadow> p16;
      Pack<TargetShadow> k16;
#pragma unroll
      for (int lane = 0; lane < kVector; ++lane) {
        Element e{p.value[lane], m.value[lane], v.value[lane], k.value[lane]};
        advance<kTarget>(e, to_float(g.value[lane]), factors);
        p.value[lane] = e.param;
        m.value[lane] = e.exp_avg;
        v.value[lane] = e.exp_avg_sq;
        k.value[lane] = e.target;
        if constexpr (!std::is_same_v<ParamShadow, NoShadow>) p16.value[lane] = Cast<ParamShadow>::from(e.param);
        if constexpr (!std::is_same_v<TargetShadow, NoShadow>) k16.value[lane] = Cast<TargetShadow>::from(e.target);
      }
      *reinterpret_cast<Pack<float>*>(param + first) = p;
      *reinterpret_cast<Pack<float>*>(exp_avg + first) = m;
      *reinterpret_cast<Pack<float>*>(exp_avg_sq + first) = v;
      if constexpr (kTarget) *reinterpret_cast<Pack<float>*>(target + first) = k;
      if constexpr (!std::is_same_v<ParamShadow, NoShadow>)
        *reinterpret_cast<Pack<ParamShadow>*>(param_shadow + first) = p16;
      if constexpr (!std::is_same_v<TargetShadow, NoShadow>)
        *reinterpret_cast<Pack<TargetShadow>*>(target_shadow + first) = k16;
    } else {
      for (int64_t i = first; i < end && i < first + kVector; ++i) {
        Element e{param[i], exp_avg[i], exp_avg_sq[i], kTarget ? target[i] : 0.0f};
        advance<kTarget>(e, to_float(grad[i]), factors);
        param[i] = e.param;
        exp_avg[i] = e.exp_avg;
        exp_avg_sq[i] = e.exp_avg_sq;
        if constexpr (kTarget) target[i] = e.target;
        if constexpr (!std::is_same_v<ParamShadow, NoShadow>) param_shadow[i] = Cast<ParamShadow>::from(e.param);
        if constexpr (!std::is_same_v<TargetShadow, NoShadow>) target_shadow[i] = Cast<TargetShadow>::from(e.target);
      }
    }
  }
}

// Calls launch(type) with a value of the type that a dtype code stands for.
template <typename Launch>
void with_shadow(int code, const Launch& launch) {
  switch (code) {
    case -1:
      return launch(NoShadow{});
    case static_cast<int>(DType::kBFloat16):
      return launch(bf16{});
    case static_cast<int>(DType::kFloat16):
      return launch(fp16{});
  }
  fail("adamw_ema: shadow dtype code " + std::to_string(code) + " is neither bfloat16 nor float16");
}

template <typename Launch>
void with_grad(DType dtype, const Launch& launch) {
  switch (dtype) {
    case DType::kFloat32:
      return launch(float{});
    case DType::kBFloat16:
      return launch(bf16{});
    case DType::kFloat16:
      return launch(fp16{});
    default:
      fail(std::string("adamw_ema: gradient dtype ") + name_of(dtype) + " is none of float32, bfloat16, float16");
  }
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("adamw_ema: launch failed: ") + cudaGetErrorString(error));
}

}  // namespace

void adamw_ema_sum_of_squares_cuda(const AdamWLaunch& launch, double* partials, void* stream) {
  if (launch.programs == 0) return;
  with_grad(launch.grad_dtype, [&](auto grad) {
    sum_of_squares_kernel<decltype(grad)>
        <<<static_cast<unsigned>(launch.programs), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            launch.table, launch.grads, launch.chunks, partials, launch.chunk, launch.aligned);
  });
  check_launch();
}

void adamw_ema_prepare_cuda(const int64_t* table, int64_t tensors, const double* hyper, const double* control,
                            const double* squares, double* status, float* coefficients, float* shared, void* stream) {
  prepare_kernel<<<1, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(table, tensors, hyper, control, squares, status,
                                                                        coefficients, shared);
  check_launch();
}

void adamw_ema_step_cuda(const AdamWLaunch& launch, const double* hyper, const float* coefficients, const float* shared,
                         bool target, int param_shadow_dtype, int target_shadow_dtype, void* stream) {
  if (launch.programs == 0) return;
  if (!target && target_shadow_dtype != -1) fail("adamw_ema: a target shadow without a target");
  const auto start = [&](auto kernel) {
    kernel<<<static_cast<unsigned>(launch.programs), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        launch.table, launch.grads, launch.chunks, hyper, coefficients, shared, launch.chunk, launch.aligned);
  };
  with_grad(launch.grad_dtype, [&](auto grad) {
    with_shadow(param_shadow_dtype, [&](auto param_shadow) {
      using Grad = decltype(grad);
      using ParamShadow = decltype(param_shadow);
      if (!target) return start(step_kernel<Grad, false, ParamShadow, NoShadow>);
      with_shadow(target_shadow_dtype,
                  [&](auto target_shadow) { start(step_kernel<Grad, true, ParamShadow, decltype(target_shadow)>); });
    });
  });
  check_launch();
}

}  // namespace jepa
