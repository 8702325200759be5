// Patch embedding on compute capability 9.0: a warpgroup gathers and normalises pixels while the copy engine brings the weight, and
// two warpgroups multiply what has arrived. Four stages of shared memory lie between them.
#include "patch_embed_gather.h"
#include "patch_embed_launch.h"
#include "patch_embed_wgmma.h"
#include "tensor_map.h"
#include "warpgroup_instructions.h"

namespace jepa {
namespace {

constexpr int kRows = 128, kColumns = kWarpgroupColumns, kStages = 4;
constexpr int kProducers = 128, kConsumers = 256, kThreads = kProducers + kConsumers;
constexpr int kPixelBytes = 2 * kRows * kStep, kWeightBytes = 2 * kColumns * kStep;  // of a stage
constexpr int kSwizzleBytes = 1024;                                                  // a tile's alignment
constexpr int kStageBytes = kStages * (kPixelBytes + kWeightBytes);
constexpr int kSharedBytes = kSwizzleBytes + kStageBytes + 2 * kRows * 8 + 2 * kStages * 8;
// Registers of a thread after the roles are known. A block of 384 threads starts with 168 each, 65536 / 384 rounded down to a multiple
// of 8: what the three warpgroups hold together may not exceed that, or the raise would wait for ever.
constexpr int kProducerRegisters = 120, kConsumerRegisters = 192;
static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 3 * 168, "the block's own registers");
static_assert(kSharedBytes <= 227 * 1024, "what a block may have on compute capability 9.0");
static_assert(4 * kRows * result_stride(kColumns) <= kStageBytes, "the sums take the place of the stages");

// The pixels that a producer brings in: one chunk of eight rows a stage, in batches of at most 32 words, each loaded while the one
// before it is converted.
template <typename Pixel, typename Value>
struct Producer {
  static constexpr int kBatch = sizeof(Pixel) == 1 ? 8 : 4;
  static constexpr int kBatches = kRows * kChunks / kProducers / kBatch;

  const PatchEmbedCall& call;
  const int64_t* origins;
  int thread, columns;
  bool adjacent;

  __device__ int row(int batch, int i) const { return thread / kChunks + 16 * (batch * kBatch + i); }

  __device__ void load(RawChunk<Pixel> (&raw)[kBatch], int step, int batch) const {
    const int k = step * kStep + thread % kChunks * kChunk;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t origin = origins[row(batch, i)];
      raw[i] = load_chunk(static_cast<const Pixel*>(call.pixels) + origin, origin >= 0, k, columns, adjacent, call.table);
    }
  }

  __device__ void store(const RawChunk<Pixel> (&raw)[kBatch], uint16_t* stage, int step, int batch) const {
    const int chunk = thread % kChunks;
    float2 moments[kChunk];
    load_moments(moments, call.table, step * kStep + chunk * kChunk);
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      *reinterpret_cast<uint4*>(stage + tile_element(row(batch, i), chunk)) =
          normalised_chunk<Value>(raw[i], moments, call.pixel_dtype == DType::kBFloat16);
  }
};

struct Shared {
  uint16_t* pixels;   // [kStages][kRows, kStep]
  uint16_t* weight;   // [kStages][kColumns, kStep]
  int64_t* patches;   // [kRows], -1 where there is none
  int64_t* origins;   // [kRows], elements; likewise
  uint32_t full, empty;  // addresses of kStages barriers each

  __device__ explicit Shared(unsigned char* start) {
    const uint32_t misfit = shared_address(start) % kSwizzleBytes;
    unsigned char* aligned = start + (misfit == 0 ? 0 : kSwizzleBytes - misfit);
    pixels = reinterpret_cast<uint16_t*>(aligned);
    weight = reinterpret_cast<uint16_t*>(aligned + kStages * kPixelBytes);
    patches = reinterpret_cast<int64_t*>(aligned + kStageBytes);
    origins = patches + kRows;
    full = shared_address(origins + kRows);
    empty = full + kStages * 8;
  }
};

template <typename Pixel, typename Value>
__device__ inline void produce(const PatchEmbedCall& call, const CUtensorMap& map, const Shared& shared, int steps,
                               int first_column, int columns, bool adjacent) {
  const int thread = threadIdx.x;
  const Producer<Pixel, Value> producer{call, shared.origins, thread, columns, adjacent};
  constexpr int kBatches = Producer<Pixel, Value>::kBatches;
  RawChunk<Pixel> now[Producer<Pixel, Value>::kBatch], next[Producer<Pixel, Value>::kBatch];
  producer.load(now, 0, 0);
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    wait(shared.empty + 8 * stage, (step / kStages & 1) ^ 1);
    if (thread == 0) {
      arrive_expecting(shared.full + 8 * stage, kWeightBytes);
      copy_tile(map, shared_address(shared.weight) + stage * kWeightBytes, shared.full + 8 * stage, step * kStep, first_column);
    }
#pragma unroll
    for (int batch = 0; batch < kBatches; ++batch) {
      const bool last = batch + 1 == kBatches;
      producer.load(next, last ? step + 1 : step, last ? 0 : batch + 1);  // past the last column: nothing is read
      producer.store(now, shared.pixels + stage * (kPixelBytes / 2), step, batch);
#pragma unroll
      for (int i = 0; i < Producer<Pixel, Value>::kBatch; ++i) now[i] = next[i];
    }
    fence_proxy_async();  // the tensor cores read what ordinary stores wrote
    arrive(shared.full + 8 * stage);
  }
}

template <typename Value>
__device__ inline void consume(float (&sums)[kWarpgroupSums], const Shared& shared, int steps, int group, int thread) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    wait(shared.full + 8 * stage, step / kStages & 1);
    const uint64_t left = swizzled_descriptor(shared_address(shared.pixels) + stage * kPixelBytes + group * (kPixelBytes / 2));
    const uint64_t right = swizzled_descriptor(shared_address(shared.weight) + stage * kWeightBytes);
    fence_products();
#pragma unroll
    for (int part = 0; part < kStep / 16; ++part)  // 16 columns are 32 bytes: 2 units of the descriptor's address
      warpgroup_multiply<Value>(sums, left + 2 * part, right + 2 * part, step + part);
    commit_products();
    wait_for_products<1>();  // of the stage before
    if (step > 0 && thread == 0) arrive(shared.empty + 8 * ((step - 1) % kStages));
  }
  wait_for_products<0>();
#endif
}

template <typename Pixel, typename Value>
__global__ void __launch_bounds__(kThreads, 1)
    warpgroup_kernel(const __grid_constant__ PatchEmbedCall call, const __grid_constant__ CUtensorMap map, bool adjacent) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char memory[];
  const Shared shared(memory);
  const int tiles_across = (call.width + kColumns - 1) / kColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / tiles_across) * kRows;
  const int first_column = static_cast<int>(blockIdx.x % tiles_across) * kColumns;
  const int columns = call.geometry.columns(), steps = (columns + kStep - 1) / kStep;

  if (threadIdx.x < kRows) {
    const int64_t patch = patch_of(call, first_row + threadIdx.x);
    shared.patches[threadIdx.x] = patch;
    shared.origins[threadIdx.x] = patch < 0 ? -1 : patch_origin(call.geometry, patch);
  }
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(shared.full + 8 * stage, kProducers + 1);  // every producer, and the copy's announcement
      init_barrier(shared.empty + 8 * stage, kConsumers / 128);
    }
    fence_barrier_init();
    fence_proxy_async();
  }
  __syncthreads();

  if (threadIdx.x < kProducers) {
    release_registers<kProducerRegisters>();
    produce<Pixel, Value>(call, map, shared, steps, first_column, columns, adjacent);
  } else {
    claim_registers<kConsumerRegisters>();
    const int consumer = threadIdx.x - kProducers, group = consumer / 128, thread = consumer % 128;
    float sums[kWarpgroupSums];
    consume<Value>(sums, shared, steps, group, thread);
    // Both groups have read every stage: their memory takes the sums.
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
    float* const results = reinterpret_cast<float*>(shared.pixels);
    const int warp_row = 64 * group + 16 * (thread / 32);
#pragma unroll
    for (int pair = 0; pair < kWarpgroupSums / 2; ++pair) {
      const Place at = result_place(thread % 32, pair);
      *reinterpret_cast<float2*>(results + (warp_row + at.row) * result_stride(kColumns) + at.chunk) =
          make_float2(sums[2 * pair], sums[2 * pair + 1]);
    }
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
    store_tokens<Value, kRows, kColumns, kConsumers>(call, results, shared.patches, first_row, first_column, consumer);
  }
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

void check_capability() {
  int device = 0, major = 0, minor = 0;
  check_cuda(cudaGetDevice(&device), "device");
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device");
  if (major != 9 || minor != 0)
    fail("patch_embed: the warpgroup kernel needs compute capability 9.0, this device has " + std::to_string(major) + "." +
         std::to_string(minor));
}

}  // namespace

void patch_embed_warpgroup(const PatchEmbedCall& call, bool adjacent, cudaStream_t stream) {
  check_capability();
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
