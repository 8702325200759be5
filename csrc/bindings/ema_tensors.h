// Builds the list of EMA tensors from parallel Python lists; shared by the CPU and the CUDA module.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "jepa/ema_update.h"

namespace jepa {

// Each entry is (address, dtype code, element count); a shadow entry may be None.
inline std::vector<EmaTensor> ema_tensors(const pybind11::list& targets, const pybind11::list& online,
                                          const pybind11::list& shadows) {
  const size_t count = targets.size();
  if (online.size() != count || shadows.size() != count) fail("ema_update: lists of different lengths");
  std::vector<EmaTensor> tensors;
  tensors.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const pybind11::tuple target = targets[i], source = online[i];
    EmaTensor t{};
    t.target = reinterpret_cast<void*>(target[0].cast<uintptr_t>());
    t.target_dtype = static_cast<DType>(target[1].cast<int>());
    t.numel = target[2].cast<int64_t>();
    t.online = reinterpret_cast<const void*>(source[0].cast<uintptr_t>());
    t.online_dtype = static_cast<DType>(source[1].cast<int>());
    t.index = static_cast<uint32_t>(i);
    if (source[2].cast<int64_t>() != t.numel)
      fail("ema_update: tensor " + std::to_string(i) + ": element counts differ");
    if (!shadows[i].is_none()) {
      const pybind11::tuple shadow = shadows[i];
      t.shadow = reinterpret_cast<void*>(shadow[0].cast<uintptr_t>());
      t.shadow_dtype = static_cast<DType>(shadow[1].cast<int>());
      if (shadow[2].cast<int64_t>() != t.numel)
        fail("ema_update: shadow " + std::to_string(i) + ": element counts differ");
    }
    tensors.push_back(t);
  }
  return tensors;
}

}  // namespace jepa
