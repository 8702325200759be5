// Masked attention on compute capability 9.0: a warp has the copy engine bring keys and values, and warpgroups of 64 queries each
// multiply what has arrived, scores of one tile beside sums of the one before.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "masked_attention_device.h"
#include "masked_attention_launch.h"
#include "masked_attention_warpgroup.h"
#include "tensor_map.h"
#include "warpgroup_instructions.h"
#include "warpgroup_products.h"

namespace jepa {
namespace {

// The Machine of masked_attention_warpgroup.h.
struct WarpgroupMachine : DeviceMachine {
  using TensorMap = CUtensorMap;
  // A value that is the same in all lanes of the warp.
  static __device__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }
  static __device__ uint32_t shared_address(const void* pointer) { return jepa::shared_address(pointer); }
  static __device__ void store_shared_16(void* to, const Chunk& chunk) { store_16(to, chunk); }
  static __device__ void synchronise_warpgroup(int group) { jepa::synchronise_warpgroup(group); }
  static __device__ void init_barrier(uint32_t barrier, int arrivals) { jepa::init_barrier(barrier, arrivals); }
  static __device__ void fence_barrier_init() { jepa::fence_barrier_init(); }
  static __device__ void arrive(uint32_t barrier) { jepa::arrive(barrier); }
  static __device__ void arrive_expecting(uint32_t barrier, int bytes) { jepa::arrive_expecting(barrier, bytes); }
  static __device__ void wait(uint32_t barrier, uint32_t parity) { jepa::wait(barrier, parity); }
  static __device__ void copy_tile(const CUtensorMap& map, uint32_t to, uint32_t barrier, int channel, int token, int head, int batch) {
    jepa::copy_tile(map, to, barrier, channel, token, head, batch);
  }
  static __device__ void fence_proxy_async() { jepa::fence_proxy_async(); }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  template <int kRegisters>
  static __device__ void release_registers() {
    jepa::release_registers<kRegisters>();
  }
  template <int kRegisters>
  static __device__ void claim_registers() {
    jepa::claim_registers<kRegisters>();
  }
  static __device__ void fence_products() { jepa::fence_products(); }
  static __device__ void commit_products() { jepa::commit_products(); }
  template <int kLeft>
  static __device__ void wait_for_products() {
    jepa::wait_for_products<kLeft>();
  }
  template <int kTiles>
  static __device__ void hold(float (*sums)[4]) {
    jepa::hold<kTiles>(sums);
  }
  template <typename Value, int kColumns, bool kTransposed>
  static __device__ void multiply(float (*sums)[4], const uint32_t (&left)[4], uint64_t right, bool add) {
    warpgroup_multiply_rows<Value, kColumns, kTransposed>(sums, left, right, add);
  }
#endif
};

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

void check_capability() {
  int device = 0, major = 0, minor = 0;
  check_attention(cudaGetDevice(&device), "device");
  check_attention(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
  check_attention(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device");
  if (major != 9 || minor != 0)
    fail("masked_attention: the warpgroup kernel needs compute capability 9.0, this device has " + std::to_string(major) + "." +
         std::to_string(minor));
}

}  // namespace

void masked_attention_warpgroup(const MaskedAttentionCall& call, cudaStream_t stream) {
  check_capability();
  with_head_dim_and_value(call, [&](auto head_dim, auto value) {
    using Shapes = WarpgroupShapes<decltype(head_dim)::kValue>;
    if (longest_sequence(call) <= Shapes::kSmallUpTo)
      launch<decltype(value), typename Shapes::Small>(call, stream);
    else
      launch<decltype(value), typename Shapes::Large>(call, stream);
  });
}

}  // namespace jepa
