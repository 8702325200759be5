// What the launchers of the attention kernels share: grids, and from run-time values to the types that kernels are compiled for.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "masked_attention_layout.h"

namespace jepa {

// The kernel of compute capability 9.0 (masked_attention_sm90.cu); the call is checked, keys are rotated.
void masked_attention_warpgroup(const MaskedAttentionCall& call, cudaStream_t stream);

namespace {

inline void check_attention(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("masked_attention: ") + what + ": " + cudaGetErrorString(error));
}

inline unsigned grid_of(int64_t blocks) {
  if (blocks > INT32_MAX) fail("masked_attention: " + std::to_string(blocks) + " blocks are too many for one launch");
  return static_cast<unsigned>(blocks);
}

template <int kHeadDim>
struct HeadDim {
  static constexpr int kValue = kHeadDim;
};

// Runs with the head dim as a type; false, and no run, for one that no kernel is compiled for.
template <typename Run>
bool with_head_dim(int head_dim, Run run) {
  switch (head_dim) {
    case 32:
      run(HeadDim<32>{});
      return true;
    case 64:
      run(HeadDim<64>{});
      return true;
    case 80:
      run(HeadDim<80>{});
      return true;
    case 88:
      run(HeadDim<88>{});
      return true;
    default:
      return false;
  }
}

template <typename Run>
void with_value(DType dtype, Run run) {
  if (dtype == DType::kBFloat16) return run(bf16{});
  if (dtype == DType::kFloat16) return run(fp16{});
  fail(std::string("masked_attention: no CUDA kernel for ") + name_of(dtype));
}

template <typename Run>
void with_head_dim_and_value(const MaskedAttentionCall& call, Run run) {
  with_value(call.dtype, [&](auto value) {
    const bool found = with_head_dim(call.head_dim, [&](auto head_dim) { run(head_dim, value); });
    if (!found) fail("masked_attention: no CUDA kernel for head dim " + std::to_string(call.head_dim));
  });
}

}  // namespace
}  // namespace jepa
