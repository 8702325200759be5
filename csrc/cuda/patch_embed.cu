// Patch embedding on NVIDIA GPUs from compute capability 8.0: an implicit matrix product whose left operand is gathered from the
// pixels of kept patches, normalised and rounded on its way into shared memory, while the weight arrives by asynchronous copies.
#include "device_machine.h"
#include "patch_embed_gather.h"
#include "patch_embed_launch.h"

namespace jepa {
namespace {

constexpr int kWeightStages = 3;
constexpr int kPixelStages = 2;
// Below this many tiles of 128 x 128, smaller ones: a masked clip has too few of them to occupy a GPU.
constexpr int64_t kFewTiles = 96;

// A tile of kRows x kColumns tokens by warps of kWarpRows x kWarpColumns each.
template <int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_>
struct WarpTile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;
  static constexpr int kWarps = kRows / kWarpRows * (kColumns / kWarpColumns), kThreads = 32 * kWarps;
  static constexpr int kRowFragments = kWarpRows / 16, kColumnFragments = kWarpColumns / 8;
  static constexpr int kPixelElements = kRows * kStep, kWeightElements = kColumns * kStep;  // of a stage
  static constexpr int kPipelineBytes = 2 * (kPixelStages * kPixelElements + kWeightStages * kWeightElements);
  static constexpr int kResultBytes = kRows * result_stride(kColumns) * 4;
  static constexpr int kTileBytes = kPipelineBytes > kResultBytes ? kPipelineBytes : kResultBytes;
  static constexpr int kSharedBytes = kTileBytes + kRows * 8;  // and the patch of each row
  static constexpr int kPixelChunks = kRows * kChunks / kThreads, kWeightChunks = kColumns * kChunks / kThreads;
};
using LargeTile = WarpTile<128, 128, 64, 32>;
using SmallTile = WarpTile<64, 64, 32, 32>;
static_assert(LargeTile::kSharedBytes <= 99 * 1024, "the least that a block may have from compute capability 8.0 on");

// Copies a stage of the weight: rows of `width`, zeros beyond it and beyond the padded columns.
template <typename Tile>
__device__ inline void copy_weight(const PatchEmbedCall& call, uint16_t* stage, int first_column, int first_k) {
  const int chunk = threadIdx.x % kChunks, k = first_k + chunk * kChunk;
#pragma unroll
  for (int i = 0; i < Tile::kWeightChunks; ++i) {
    const int row = threadIdx.x / kChunks + i * (Tile::kThreads / kChunks), d = first_column + row;
    const bool inside = d < call.width && k < call.weight_stride;
    const uint16_t* from = static_cast<const uint16_t*>(call.weight) + (inside ? d * call.weight_stride + k : 0);
    copy_async(stage + tile_element(row, chunk), from, inside);
  }
}

// The pixels that one thread brings into a stage: the same chunk of kPixelChunks rows.
template <typename Tile, typename Pixel>
struct PixelLoader {
  const Pixel* origins[Tile::kPixelChunks];
  bool inside[Tile::kPixelChunks];
  RawChunk<Pixel> raw[Tile::kPixelChunks];

  static __device__ int row(int i) { return threadIdx.x / kChunks + i * (Tile::kThreads / kChunks); }

  __device__ PixelLoader(const PatchEmbedCall& call, const int64_t* patches) {
#pragma unroll
    for (int i = 0; i < Tile::kPixelChunks; ++i) {
      const int64_t patch = patches[row(i)];
      inside[i] = patch >= 0;
      origins[i] = static_cast<const Pixel*>(call.pixels) + (inside[i] ? patch_origin(call.geometry, patch) : 0);
    }
  }

  __device__ void load(const PatchEmbedCall& call, int first_k, int columns, bool adjacent) {
    const int k = first_k + static_cast<int>(threadIdx.x) % kChunks * kChunk;
#pragma unroll
    for (int i = 0; i < Tile::kPixelChunks; ++i) raw[i] = load_chunk<DeviceMachine>(origins[i], inside[i], k, columns, adjacent, call.table);
  }

  template <typename Value>
  __device__ void store(const PatchEmbedCall& call, uint16_t* stage, int first_k, bool pixels_are_bf16) const {
    const int chunk = threadIdx.x % kChunks;
    Moments moments[kChunk];
    load_moments<DeviceMachine>(moments, call.table, first_k + chunk * kChunk);
#pragma unroll
    for (int i = 0; i < Tile::kPixelChunks; ++i)
      DeviceMachine::store_16(stage + tile_element(row(i), chunk),
                              normalised_chunk<DeviceMachine, Value>(raw[i], moments, pixels_are_bf16));
  }
};

// sums += pixels [kRows, kStep] @ weight [kColumns, kStep]^T, of one warp.
template <typename Tile, typename Value>
__device__ inline void multiply_stage(float (&sums)[Tile::kRowFragments][Tile::kColumnFragments][4], const uint16_t* pixels,
                                      const uint16_t* weight, int warp_row, int warp_column, int lane) {
#pragma unroll
  for (int step = 0; step < kStep / 16; ++step) {
    const Place left_at = left_place(lane, step), right_at = right_place(lane, step);
    uint32_t left[Tile::kRowFragments][4], right[Tile::kColumnFragments / 2][4];
#pragma unroll
    for (int m = 0; m < Tile::kRowFragments; ++m)
      load_matrices(left[m], pixels + tile_element(warp_row + 16 * m + left_at.row, left_at.chunk));
#pragma unroll
    for (int n = 0; n < Tile::kColumnFragments / 2; ++n)
      load_matrices(right[n], weight + tile_element(warp_column + 16 * n + right_at.row, right_at.chunk));
#pragma unroll
    for (int m = 0; m < Tile::kRowFragments; ++m)
#pragma unroll
      for (int n = 0; n < Tile::kColumnFragments; ++n)
        multiply_add<Value>(sums[m][n], left[m], right[n / 2][2 * (n % 2)], right[n / 2][2 * (n % 2) + 1]);
  }
}

template <typename Tile, typename Pixel, typename Value>
__global__ void __launch_bounds__(Tile::kThreads) forward_kernel(const __grid_constant__ PatchEmbedCall call, bool adjacent) {
  extern __shared__ __align__(128) unsigned char shared[];
  uint16_t* const pixels = reinterpret_cast<uint16_t*>(shared);
  uint16_t* const weight = pixels + kPixelStages * Tile::kPixelElements;
  int64_t* const patches = reinterpret_cast<int64_t*>(shared + Tile::kTileBytes);
  const int tiles_across = (call.width + Tile::kColumns - 1) / Tile::kColumns;
  // Neighbouring blocks share rows: their pixels stay in the L2 cache while the weight, which all share, passes.
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / tiles_across) * Tile::kRows;
  const int first_column = static_cast<int>(blockIdx.x % tiles_across) * Tile::kColumns;
  const int columns = call.geometry.columns(), steps = (columns + kStep - 1) / kStep;
  const bool pixels_are_bf16 = call.pixel_dtype == DType::kBFloat16;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  constexpr int kWarpsAcross = Tile::kColumns / Tile::kWarpColumns;
  const int warp_row = warp / kWarpsAcross * Tile::kWarpRows, warp_column = warp % kWarpsAcross * Tile::kWarpColumns;

  for (int row = threadIdx.x; row < Tile::kRows; row += Tile::kThreads) patches[row] = patch_of<DeviceMachine>(call, first_row + row);
  for (int stage = 0; stage < kWeightStages - 1; ++stage) {
    if (stage < steps) copy_weight<Tile>(call, weight + stage * Tile::kWeightElements, first_column, stage * kStep);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  __syncthreads();
  PixelLoader<Tile, Pixel> loader(call, patches);
  loader.load(call, 0, columns, adjacent);
  loader.template store<Value>(call, pixels, 0, pixels_are_bf16);
  asm volatile("cp.async.wait_group %0;" ::"n"(kWeightStages - 2) : "memory");
  __syncthreads();

  float sums[Tile::kRowFragments][Tile::kColumnFragments][4] = {};
  for (int step = 0; step < steps; ++step) {
    const int ahead = step + kWeightStages - 1;
    if (ahead < steps)
      copy_weight<Tile>(call, weight + ahead % kWeightStages * Tile::kWeightElements, first_column, ahead * kStep);
    asm volatile("cp.async.commit_group;" ::: "memory");
    const bool more = step + 1 < steps;
    if (more) loader.load(call, (step + 1) * kStep, columns, adjacent);  // arrives while this stage is multiplied
    multiply_stage<Tile, Value>(sums, pixels + step % kPixelStages * Tile::kPixelElements,
                                weight + step % kWeightStages * Tile::kWeightElements, warp_row, warp_column, lane);
    if (more)
      loader.template store<Value>(call, pixels + (step + 1) % kPixelStages * Tile::kPixelElements, (step + 1) * kStep,
                                   pixels_are_bf16);
    asm volatile("cp.async.wait_group %0;" ::"n"(kWeightStages - 2) : "memory");
    __syncthreads();
  }

  // No copy is under way and nobody reads the stages any more: their memory takes the sums.
  float* const results = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int m = 0; m < Tile::kRowFragments; ++m)
#pragma unroll
    for (int n = 0; n < Tile::kColumnFragments; ++n)
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const Place at = result_place(lane, pair);
        float* to = results + (warp_row + 16 * m + at.row) * result_stride(Tile::kColumns) + warp_column + 8 * n + at.chunk;
        *reinterpret_cast<float2*>(to) = make_float2(sums[m][n][2 * pair], sums[m][n][2 * pair + 1]);
      }
  __syncthreads();
  store_tokens<DeviceMachine, Value, Tile::kRows, Tile::kColumns, Tile::kThreads>(call, results, patches, first_row, first_column,
                                                                                  threadIdx.x);
}

__global__ void table_kernel(const PatchGeometry geometry, const float* mean, const float* std, PatchColumn* table, int count) {
  const int k = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (k < count) table[k] = patch_column(geometry, k, mean, std);
}

template <typename Tile, typename Pixel, typename Value>
void launch(const PatchEmbedCall& call, bool adjacent, cudaStream_t stream) {
  const auto kernel = forward_kernel<Tile, Pixel, Value>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes), "shared memory");
  const int64_t tiles_across = (call.width + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t tiles = (call.num_rows + Tile::kRows - 1) / Tile::kRows * tiles_across;
  kernel<<<static_cast<unsigned>(tiles), Tile::kThreads, Tile::kSharedBytes, stream>>>(call, adjacent);
}

int64_t large_tiles(const PatchEmbedCall& call) {
  return ((call.num_rows + LargeTile::kRows - 1) / LargeTile::kRows) *
         ((call.width + LargeTile::kColumns - 1) / LargeTile::kColumns);
}

}  // namespace

void patch_embed_cuda(const PatchEmbedCall& call, PatchEmbedPath path, void* stream_address) {
  if (call.num_rows == 0 || call.width == 0) return;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
  const int columns = call.geometry.columns(), count = (columns + kStep - 1) / kStep * kStep;
  table_kernel<<<(count + 255) / 256, 256, 0, stream>>>(call.geometry, call.mean, call.std, call.table, count);
  check_cuda(cudaGetLastError(), "table launch failed");
  const bool adjacent = chunks_are_adjacent(call.geometry, call.pixels, item_size(call.pixel_dtype));
  if (path == PatchEmbedPath::kWarpgroup) return patch_embed_warpgroup(call, adjacent, stream);
  if (large_tiles(call) * 4 > INT32_MAX) fail("patch_embed: too many tokens for one launch");
  with_types<Half16>(call, [&](auto pixel, auto value) {
    if (large_tiles(call) < kFewTiles)
      launch<SmallTile, decltype(pixel), decltype(value)>(call, adjacent, stream);
    else
      launch<LargeTile, decltype(pixel), decltype(value)>(call, adjacent, stream);
  });
  check_cuda(cudaGetLastError(), "launch failed");
}

}  // namespace jepa
