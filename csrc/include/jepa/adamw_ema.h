// AdamW, the EMA target update and low-precision copies of both in one pass over many tensors, on CPUs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "jepa/tensor_view.h"

namespace jepa {

class WorkItems;

// One contiguous parameter with its state, float32. `target` and the shadows may be null.
struct AdamWTensor {
  float* param;
  const void* grad;
  float* exp_avg;
  float* exp_avg_sq;
  float* step;  // one element: steps taken so far
  float* target;
  void* param_shadow;
  void* target_shadow;
  int64_t numel;
  DType grad_dtype;
  DType param_shadow_dtype;
  DType target_shadow_dtype;
  int group;
};

// Hyperparameters of one parameter group.
struct AdamWGroup {
  double lr, beta1, beta2, eps, weight_decay;
};

// What one tensor's elements need, rounded to float32 once.
struct AdamWCoefficients {
  float decay;                // 1 - lr * weight_decay
  float weight1;              // 1 - beta1
  float beta2, weight2;       // beta2, 1 - beta2
  float inverse_correction2;  // 1 / sqrt(1 - beta2^step)
  float eps;
  float step_size;      // lr / (1 - beta1^step)
  float grad_factor;    // clipping and unscaling
  float target_weight;  // 1 - momentum
  bool stream;          // shadows go around the caches
};

class AdamWTensors {
 public:
  explicit AdamWTensors(std::vector<AdamWTensor> tensors);
  ~AdamWTensors();

  // Gradients move from step to step while the rest stays.
  void set_grad(size_t tensor, const void* grad, DType dtype);
  size_t size() const;

  // Of all gradients as they are, in float64; the same for every number of threads and instruction set.
  double sum_of_squares(int num_threads) const;
  void update(const std::vector<AdamWGroup>& groups, double momentum, double grad_factor, int num_threads);

 private:
  std::vector<AdamWTensor> tensors_;
  std::unique_ptr<WorkItems> items_;
  int64_t bytes_ = 0;
};

}  // namespace jepa
