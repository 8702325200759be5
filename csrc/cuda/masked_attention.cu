// Masked attention on NVIDIA GPUs from compute capability 8.0: a block keeps its queries in registers and streams the keys that they
// may see, two stages of asynchronous copies ahead of tensor-core products, through an online softmax.
#include <cuda_runtime.h>

#include "device_machine.h"
#include "masked_attention_block.h"
#include "masked_attention_launch.h"

namespace jepa {
namespace {

// With fewer blocks of 128 queries than fill a GPU twice, blocks of 64.
constexpr int64_t kFewBlocks = 256;
constexpr int kRotateThreads = 256;

template <typename Value, typename Shape>
__global__ void __launch_bounds__(kAttentionThreads, Shape::kBlocksPerProcessor)
    attention_kernel(const __grid_constant__ MaskedAttentionCall call, int tiles) {
  extern __shared__ __align__(128) uint16_t shared[];
  attention_block<DeviceMachine, Value, Shape>(call, shared, blockIdx.x, tiles);
}

template <typename Value>
__global__ void __launch_bounds__(kRotateThreads) rotate_keys_kernel(const __grid_constant__ RotateKeysCall call) {
  rotate_key_chunk<DeviceMachine, Value>(call, static_cast<int64_t>(blockIdx.x) * kRotateThreads + threadIdx.x);
}

template <typename Value, typename Shape>
void launch(const MaskedAttentionCall& call, cudaStream_t stream) {
  static_assert(Shape::kSharedBytes <= 48 * 1024, "what a block may have without asking");
  const unsigned blocks = grid_of(blocks_of(call, Shape::kRows));
  if (blocks == 0) return;
  const int tiles = static_cast<int>(tiles_of(call, Shape::kRows));
  attention_kernel<Value, Shape><<<blocks, kAttentionThreads, Shape::kSharedBytes, stream>>>(call, tiles);
  check_attention(cudaGetLastError(), "launch failed");
}

template <typename Value, int kHeadDim>
void launch_fitting(const MaskedAttentionCall& call, cudaStream_t stream) {
  using Large = AttentionShape<kHeadDim, 2>;
  using Small = AttentionShape<kHeadDim, 1>;
  if (blocks_of(call, Large::kRows) < kFewBlocks)
    launch<Value, Small>(call, stream);
  else
    launch<Value, Large>(call, stream);
}

}  // namespace

bool masked_attention_has_head_dim(int head_dim) {
  return with_head_dim(head_dim, [](auto) {});
}

void rotate_keys_cuda(const RotateKeysCall& call, void* stream) {
  const int64_t items = rotate_items(call);
  if (items == 0) return;
  const unsigned blocks = grid_of((items + kRotateThreads - 1) / kRotateThreads);
  with_value(call.dtype, [&](auto value) {
    rotate_keys_kernel<decltype(value)><<<blocks, kRotateThreads, 0, static_cast<cudaStream_t>(stream)>>>(call);
  });
  check_attention(cudaGetLastError(), "launch failed");
}

void masked_attention_forward_cuda(const MaskedAttentionCall& call, AttentionPath path, void* stream) {
  if (path == AttentionPath::kWarpgroup) return masked_attention_warpgroup(call, static_cast<cudaStream_t>(stream));
  with_head_dim_and_value(call, [&](auto head_dim, auto value) {
    launch_fitting<decltype(value), decltype(head_dim)::kValue>(call, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace jepa
