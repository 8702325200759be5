// target += (1 - momentum) * (online - target) over many tensors: interface of the CPU and CUDA implementations.
#pragma once

#include <cstdint>
#include <vector>

#include "jepa/tensor_view.h"

namespace jepa {

// One contiguous tensor of the update. `shadow` may be null; `stochastic` holds only for bf16 targets.
struct EmaTensor {
  void* target;
  const void* online;
  void* shadow;
  int64_t numel;
  DType target_dtype;
  DType online_dtype;
  DType shadow_dtype;
  uint32_t index;  // place in the caller's list: the high half of the random counter
};

// weight = 1 - momentum.
void ema_update_cpu(const std::vector<EmaTensor>& tensors, double weight, bool stochastic_rounding, uint64_t seed, int num_threads);

}  // namespace jepa
