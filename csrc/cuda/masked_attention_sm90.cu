// Masked attention on compute capability 9.0: a warp has the copy engine bring keys and values, and warpgroups of 64 queries each
// multiply what has arrived, scores of one tile beside sums of the one before.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "masked_attention_launch.h"
#include "masked_attention_warpgroup.h"
#include "tensor_map.h"
#include "warpgroup_machine.h"

namespace jepa {
namespace {

template <typename Value, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerProcessor)
    warpgroup_attention_kernel(const __grid_constant__ MaskedAttentionCall call,
                               const __grid_constant__ KeyValueMaps<CUtensorMap> maps, int tiles) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char memory[];
  const uint32_t misfit = shared_address(memory) % Shape::kAlignment;
  uint16_t* const shared = reinterpret_cast<uint16_t*>(memory + (misfit == 0 ? 0 : Shape::kAlignment - misfit));
  warpgroup_attention_block<WarpgroupMachine, Value, Shape>(call, maps, shared, blockIdx.x, tiles);
#else
  __trap();  // the launcher asks for compute capability 9.0
#endif
}

CUtensorMap map_of(DType dtype, const void* data, const RowsPart& part) {
  TiledTensor<4> tensor{};
  tensor.dtype = dtype, tensor.data = data;
  std::copy(part.sizes, part.sizes + 4, tensor.sizes);
  std::copy(part.strides, part.strides + 3, tensor.strides);
  std::copy(part.box, part.box + 4, tensor.box);
  const int channels = part.box[0];
  tensor.swizzle = channels == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : channels == 32 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_32B;
  return tensor_map("masked_attention", "keys or values", tensor);
}

template <typename Value, typename Shape>
void launch(const MaskedAttentionCall& call, cudaStream_t stream) {
  static_assert(Shape::kBlocksPerProcessor * (Shape::kSharedBytes + 1024) <= 228 * 1024, "what a multiprocessor has");
  const unsigned blocks = grid_of(blocks_of(call, Shape::kBlockRows));
  if (blocks == 0) return;
  const auto kernel = warpgroup_attention_kernel<Value, Shape>;
  check_attention(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes), "shared memory");
  const int tiles = static_cast<int>(tiles_of(call, Shape::kBlockRows));
  const auto make = [&](const void* data, const RowsPart& part) { return map_of(call.dtype, data, part); };
  const auto maps = key_value_maps<Shape, CUtensorMap>(call, make);
  kernel<<<blocks, Shape::kThreads, Shape::kSharedBytes, stream>>>(call, maps, tiles);
  check_attention(cudaGetLastError(), "launch failed");
}

}  // namespace

void masked_attention_warpgroup(const MaskedAttentionCall& call, cudaStream_t stream) {
  check_compute_capability_90("masked_attention");
  with_head_dim_and_value(call, [&](auto head_dim, auto value) {
    using Shapes = WarpgroupShapes<decltype(head_dim)::kValue>;
    if (longest_sequence(call) <= Shapes::kSmallUpTo)
      launch<decltype(value), typename Shapes::Small>(call, stream);
    else
      launch<decltype(value), typename Shapes::Large>(call, stream);
  });
}

}  // namespace jepa
