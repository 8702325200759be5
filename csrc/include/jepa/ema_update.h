// target += (1 - momentum) * (online - target) over many tensors on CPUs: checked and cut into shares once, updated
// every step.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "jepa/tensor_view.h"

namespace jepa {

class WorkItems;

// One contiguous tensor of the update. `shadow` may be null; stochastic rounding holds only for bf16 targets.
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

struct EmaCpuStep {
  double weight;  // 1 - momentum
  bool stochastic_rounding;
  uint64_t seed;
  bool stream;  // shadows go around the caches
};

class EmaTensors {
 public:
  explicit EmaTensors(std::vector<EmaTensor> tensors);
  ~EmaTensors();
  void update(double weight, bool stochastic_rounding, uint64_t seed, int num_threads) const;

 private:
  std::vector<EmaTensor> tensors_;
  std::unique_ptr<WorkItems> items_;
};

}  // namespace jepa
