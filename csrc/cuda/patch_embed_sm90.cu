// Patch embedding on compute capability 9.0: the kernel's launch, and the weight's tensor map.
#include "patch_embed_launch.h"
#include "patch_embed_warpgroup.h"
#include "tensor_map.h"
#include "warpgroup_machine.h"

namespace jepa {
namespace {

template <typename Pixel, typename Value>
__global__ void __launch_bounds__(kThreads, 1)
    warpgroup_kernel(const __grid_constant__ PatchEmbedCall call, const __grid_constant__ CUtensorMap map, bool adjacent) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char memory[];
  patch_embed_block<WarpgroupMachine, Pixel, Value>(call, map, memory, blockIdx.x, adjacent);
#else
  __trap();  // the launcher asks for compute capability 9.0
#endif
}

// kColumns rows of the weight by kStep columns, swizzled as tile_element().
CUtensorMap weight_map(const PatchEmbedCall& call) {
  const auto stride = static_cast<cuuint64_t>(call.weight_stride), width = static_cast<cuuint64_t>(call.width);
  return tensor_map<2>("patch_embed", "the weight",
                       {call.weight_dtype, call.weight, {stride, width}, {2 * stride}, {kStep, kColumns}, CU_TENSOR_MAP_SWIZZLE_128B});
}

}  // namespace

void patch_embed_warpgroup(const PatchEmbedCall& call, bool adjacent, cudaStream_t stream) {
  check_compute_capability_90("patch_embed");
  const CUtensorMap map = weight_map(call);
  const int64_t tiles_across = (call.width + kColumns - 1) / kColumns;
  const int64_t tiles = (call.num_rows + kRows - 1) / kRows * tiles_across;
  if (tiles > INT32_MAX) fail("patch_embed: too many tokens for one launch");
  with_types<Half16>(call, [&](auto pixel, auto value) {
    const auto kernel = warpgroup_kernel<decltype(pixel), decltype(value)>;
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes), "shared memory");
    kernel<<<static_cast<unsigned>(tiles), kThreads, kSharedBytes, stream>>>(call, map, adjacent);
  });
  check_cuda(cudaGetLastError(), "launch failed");
}

}  // namespace jepa
