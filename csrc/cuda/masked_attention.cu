// Masked attention on NVIDIA GPUs from compute capability 8.0: a block keeps its queries in registers and streams the keys that they
// may see, two stages of asynchronous copies ahead of tensor-core products, through an online softmax.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "masked_attention_block.h"
#include "warp_instructions.h"

namespace jepa {
namespace {

// With fewer blocks of 128 queries than fill a GPU twice, blocks of 64.
constexpr int64_t kFewBlocks = 256;
constexpr int kRotateThreads = 256;

struct DeviceMachine {
  static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ void synchronise() { __syncthreads(); }
  static __device__ void synchronise_warp() { __syncwarp(); }
  static __device__ Chunk load_16(const void* from) {
    const uint4 words = __ldg(static_cast<const uint4*>(from));
    return {{words.x, words.y, words.z, words.w}};
  }
  static __device__ void store_16(void* to, const Chunk& chunk) {
    *static_cast<uint4*>(to) = make_uint4(chunk.word[0], chunk.word[1], chunk.word[2], chunk.word[3]);
  }
  static __device__ void copy_async(void* to, const void* from, bool inside) { jepa::copy_async(to, from, inside); }
  static __device__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
  static __device__ void load_matrices(uint32_t (&out)[4], const uint16_t* from) { jepa::load_matrices(out, from); }
  static __device__ void load_transposed_matrices(uint32_t (&out)[4], const uint16_t* from) {
    jepa::load_transposed_matrices(out, from);
  }
  template <typename Value>
  static __device__ void multiply_add(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
    jepa::multiply_add<Value>(sum, left, right0, right1);
  }
  template <typename Value>
  static __device__ void multiply_add(float (&sum)[4], const uint32_t (&left)[2], uint32_t right) {
    jepa::multiply_add<Value>(sum, left, right);
  }
  template <typename Value>
  static __device__ uint32_t pair(float low, float high) {
    return rounded_pair<Value>(low, high);
  }
  template <typename Value>
  static __device__ float2 values(uint32_t pair) {
    return pair_values<Value>(pair);
  }
  static __device__ float larger(float a, float b) { return fmaxf(a, b); }
  static __device__ float exchange(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
  static __device__ float power_of_2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
  }
  static __device__ float reciprocal(float x) { return __fdividef(1.0f, x); }
  static __device__ float logarithm_2(float x) { return __log2f(x); }
};

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

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("masked_attention: launch failed: ") + cudaGetErrorString(error));
}

unsigned grid_of(int64_t blocks) {
  if (blocks > INT32_MAX) fail("masked_attention: " + std::to_string(blocks) + " blocks are too many for one launch");
  return static_cast<unsigned>(blocks);
}

int64_t tiles_of(const MaskedAttentionCall& call, int rows) { return (static_cast<int64_t>(longest_sequence(call)) + rows - 1) / rows; }

int64_t blocks_of(const MaskedAttentionCall& call, int rows) { return tiles_of(call, rows) * call.heads * grid_entries(call); }

template <typename Value, typename Shape>
void launch(const MaskedAttentionCall& call, cudaStream_t stream) {
  static_assert(Shape::kSharedBytes <= 48 * 1024, "what a block may have without asking");
  const unsigned blocks = grid_of(blocks_of(call, Shape::kRows));
  if (blocks == 0) return;
  const int tiles = static_cast<int>(tiles_of(call, Shape::kRows));
  attention_kernel<Value, Shape><<<blocks, kAttentionThreads, Shape::kSharedBytes, stream>>>(call, tiles);
  check_launch();
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

template <typename Value>
void launch_head_dim(const MaskedAttentionCall& call, cudaStream_t stream) {
  const auto run = [&](auto head_dim) { launch_fitting<Value, decltype(head_dim)::kValue>(call, stream); };
  if (!with_head_dim(call.head_dim, run)) fail("masked_attention: no CUDA kernel for head dim " + std::to_string(call.head_dim));
}

template <typename Run>
void with_value(DType dtype, Run run) {
  if (dtype == DType::kBFloat16) return run(bf16{});
  if (dtype == DType::kFloat16) return run(fp16{});
  fail(std::string("masked_attention: no CUDA kernel for ") + name_of(dtype));
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
  check_launch();
}

void masked_attention_forward_cuda(const MaskedAttentionCall& call, void* stream) {
  with_value(call.dtype, [&](auto value) { launch_head_dim<decltype(value)>(call, static_cast<cudaStream_t>(stream)); });
}

}  // namespace jepa
