// Interface of the EMA update on GPUs: a plan kept on the device, and what changes from step to step.
#pragma once

#include <cstdint>

#include "jepa/tensor_view.h"

namespace jepa {

// Tensors of one combination of dtypes; laid out by jepa_kernels.ops.ema_update.DevicePlan.
struct EmaPlan {
  const int64_t* table;   // [tensors, 5] on the device
  const int32_t* chunks;  // [programs, 2] on the device: row of the table, chunk in that tensor
  int64_t programs;
  int chunk;  // elements a program, a multiple of 8
  DType target_dtype;
  DType online_dtype;
  int shadow_dtype;  // code of a DType, or -1 for none
  bool aligned;      // every address is a multiple of 16 bytes
};

struct EmaStep {
  double weight;           // 1 - momentum
  const double* momentum;  // on the device, in place of weight; or null
  bool stochastic_rounding;
  uint64_t seed;
  const int64_t* seed_address;  // on the device, in place of seed; or null
};

void ema_update_cuda(const EmaPlan& plan, const EmaStep& step, void* stream);

}  // namespace jepa
