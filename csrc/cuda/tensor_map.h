// Tensor maps, by which the copy engine of compute capability 9.0 finds its tiles. Their encoder is the driver's, looked up at run time:
// nothing links the driver.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "jepa/float_types.h"
#include "jepa/tensor_view.h"

namespace jepa {

// The kernels that use tensor maps are compiled for compute capability 9.0 alone. `operation` begins the errors.
inline void check_compute_capability_90(const std::string& operation) {
  const auto check = [&](cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(operation + ": device: " + cudaGetErrorString(error));
  };
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (major != 9 || minor != 0)
    fail(operation + ": the warpgroup kernel needs compute capability 9.0, this device has " + std::to_string(major) + "." +
         std::to_string(minor));
}

// A tensor of 16-bit values and the box that one copy takes of it, dimensions innermost first.
template <int kRank>
struct TiledTensor {
  DType dtype;
  const void* data;              // aligned to 16 bytes
  cuuint64_t sizes[kRank];       // elements
  cuuint64_t strides[kRank - 1];  // bytes, multiples of 16, from the second dimension on
  cuuint32_t box[kRank];         // elements
  CUtensorMapSwizzle swizzle;
};

// `operation` begins the errors.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder(const std::string& operation) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) throw std::runtime_error(operation + ": driver: " + cudaGetErrorString(error));
  if (found != cudaDriverEntryPointSuccess || entry == nullptr)
    throw std::runtime_error(operation + ": this driver has no tensor maps; update it, or take the kernel for every GPU");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
}

// `name` is the tensor's, for the errors.
template <int kRank>
CUtensorMap tensor_map(const std::string& operation, const std::string& name, const TiledTensor<kRank>& tensor) {
  static const auto encode = tensor_map_encoder(operation);
  const auto type = tensor.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  cuuint32_t steps[kRank];
  for (cuuint32_t& step : steps) step = 1;
  CUtensorMap map{};
  const CUresult result = encode(&map, type, kRank, const_cast<void*>(tensor.data), tensor.sizes, tensor.strides, tensor.box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, tensor.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error(operation + ": the driver refused the tensor map of " + name + ", error " + std::to_string(result));
  return map;
}

}  // namespace jepa
