// What the two kernels of the patch embedding ask of each other's files.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "jepa/float_types.h"
#include "jepa/patch_embed_cuda.h"

namespace jepa {

// The kernel of compute capability 9.0 (patch_embed_sm90.cu); the table is written, the call is checked.
void patch_embed_warpgroup(const PatchEmbedCall& call, bool adjacent, cudaStream_t stream);

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("patch_embed: ") + what + ": " + cudaGetErrorString(error));
}

// Calls `run(pixel, value)` with a value of the pixels' storage type and one of the product's type.
template <typename Half16, typename Run>
void with_types(const PatchEmbedCall& call, Run run) {
  const auto of_pixel = [&](auto value) {
    switch (call.pixel_dtype) {
      case DType::kUInt8:
        return run(uint8_t{}, value);
      case DType::kFloat32:
        return run(float{}, value);
      case DType::kBFloat16:
      case DType::kFloat16:
        return run(Half16{}, value);
      default:
        fail(std::string("patch_embed: no kernel for pixels of ") + name_of(call.pixel_dtype));
    }
  };
  if (call.weight_dtype == DType::kBFloat16) return of_pixel(bf16{});
  if (call.weight_dtype == DType::kFloat16) return of_pixel(fp16{});
  fail(std::string("patch_embed: no kernel for a weight of ") + name_of(call.weight_dtype));
}

}  // namespace jepa
