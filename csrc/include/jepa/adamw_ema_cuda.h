// Interface of AdamW with EMA on GPUs: tables kept on the device, and what changes from step to step.
#pragma once

#include <cstdint>

#include "jepa/tensor_view.h"

namespace jepa {

// Programs over tensors of one combination of dtypes; laid out by jepa_kernels.ops.adamw_ema_device.DevicePlan.
struct AdamWLaunch {
  const int64_t* table;   // [tensors, 9] on the device
  const int64_t* grads;   // [tensors]: addresses of the gradients
  const int32_t* chunks;  // [programs, 2]: row of the table, chunk in that tensor
  int64_t programs;
  int chunk;  // elements a program, a multiple of 8
  DType grad_dtype;
  bool aligned;  // every address is a multiple of 16 bytes
};

void adamw_ema_sum_of_squares_cuda(const AdamWLaunch& launch, double* partials, void* stream);

// hyper: [groups, 5]; control: [4]; squares: one value or null; status: [3]; coefficients: [tensors, 2]; shared: [3].
void adamw_ema_prepare_cuda(const int64_t* table, int64_t tensors, const double* hyper, const double* control,
                            const double* squares, double* status, float* coefficients, float* shared, void* stream);

// Shadow dtypes are codes of a DType, or -1 for none.
void adamw_ema_step_cuda(const AdamWLaunch& launch, const double* hyper, const float* coefficients, const float* shared,
                         bool target, int param_shadow_dtype, int target_shadow_dtype, void* stream);

}  // namespace jepa
