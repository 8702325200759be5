// Where every value of a tile lies: shared memory, fragments of the tensor-core instructions, results. Plain arithmetic for host and
// device, so that a test without a GPU can follow each value through a whole tile.
#pragma once

#include <cstdint>

#include "jepa/float_types.h"
#include "jepa/patch_embed_cuda.h"

namespace jepa {
namespace {

constexpr int kStep = kPatchEmbedStep;  // columns of a tile held in shared memory: 128 bytes a row
constexpr int kChunk = 8;               // columns a 16-byte access
constexpr int kChunks = kStep / kChunk;

// Element of (row, chunk) in a tile of rows of kStep 16-bit values: chunks of a row change places with the row, so that the eight
// rows of a matrix fragment lie in different banks. The pattern of the copy engine's 128-byte swizzle.
JEPA_HOST_DEVICE inline int tile_element(int row, int chunk) { return row * kStep + ((chunk ^ (row & 7)) * kChunk); }

// Row and chunk that a lane addresses when a warp loads four 8 x 8 matrices: a fragment of 16 rows and 16 columns of the left
// operand, or two fragments of 8 rows and 16 columns of the right one. `step` counts 16 columns.
struct Place {
  int row, chunk;
};
JEPA_HOST_DEVICE inline Place left_place(int lane, int step) { return {lane & 15, 2 * step + (lane >> 4)}; }
JEPA_HOST_DEVICE inline Place right_place(int lane, int step) {
  return {(lane & 7) + ((lane >> 4) << 3), 2 * step + ((lane >> 3) & 1)};
}

// Row and first column of a lane's pair of results: pair 0 and 1 of a 16 x 8 tile (warp), or pair i of 64 x N (warpgroup, whose
// warps hold 16 rows each and whose tiles of 8 columns follow each other).
JEPA_HOST_DEVICE inline Place result_place(int lane, int pair) {
  return {(lane >> 2) + 8 * (pair & 1), 8 * (pair >> 1) + 2 * (lane & 3)};
}

// Elements from row to row of a tile of results in shared memory: the eight rows that a warp writes at once in different banks.
JEPA_HOST_DEVICE constexpr int result_stride(int columns) { return columns + 8; }

// Offset of a patch's first pixel.
JEPA_HOST_DEVICE inline int64_t patch_origin(const PatchGeometry& g, int64_t patch) {
  const int64_t plane = static_cast<int64_t>(g.grid_h) * g.grid_w, tokens = plane * g.grid_t;
  const int64_t b = patch / tokens, token = patch - b * tokens;
  const int64_t t = token / plane, place = token - t * plane;
  const int64_t r = place / g.grid_w, c = place - r * g.grid_w;
  return b * g.stride_b + t * g.patch_t * g.stride_t + r * g.patch_h * g.stride_h + c * g.patch_w * g.stride_w;
}

// Column k of the product: the pixel that it multiplies, and that pixel's channel. Columns beyond the last give zeros.
JEPA_HOST_DEVICE inline PatchColumn patch_column(const PatchGeometry& g, int k, const float* mean, const float* std) {
  const int frame = g.patch_h * g.patch_w;
  if (k >= g.channels * g.patch_t * frame) return {0, 0.0f, 0.0f, 0};
  const int inner = g.interleaved ? k / g.channels : k % (g.patch_t * frame);
  const int channel = g.interleaved ? k % g.channels : k / (g.patch_t * frame);
  const int t = inner / frame, y = inner / g.patch_w % g.patch_h, x = inner % g.patch_w;
  const int64_t offset = channel * g.stride_c + t * g.stride_t + y * g.stride_h + x * g.stride_w;
  return {static_cast<int32_t>(offset), mean == nullptr ? 0.0f : mean[channel], std == nullptr ? 1.0f : 1.0f / std[channel], 0};
}

// Whether the eight pixels of every chunk are adjacent and start at a multiple of their size (16 bytes at most).
inline bool chunks_are_adjacent(const PatchGeometry& g, const void* pixels, int64_t item) {
  const int64_t run = g.interleaved ? static_cast<int64_t>(g.patch_w) * g.channels : g.patch_w;
  const bool dense = g.interleaved ? g.stride_c == 1 && g.stride_w == g.channels : g.stride_w == 1;
  const int64_t bytes = item * kChunk < 16 ? item * kChunk : 16;
  const auto fits = [&](int64_t stride) { return stride * item % bytes == 0; };
  // A stride is only used where its dimension has more than one step.
  const bool strides = (g.batch == 1 || fits(g.stride_b)) && (g.interleaved || g.channels == 1 || fits(g.stride_c)) &&
                       (g.patch_t * g.grid_t == 1 || fits(g.stride_t)) && (g.patch_h * g.grid_h == 1 || fits(g.stride_h));
  return dense && strides && run % kChunk == 0 && reinterpret_cast<uintptr_t>(pixels) % static_cast<uintptr_t>(bytes) == 0;
}

// A descriptor of a tile of tile_element() for the warpgroup instruction: address and the 1024 bytes from eight rows to the next,
// both in units of 16 bytes; the 128-byte swizzle. The distance within a row is implied by the swizzle, and set to 1.
JEPA_HOST_DEVICE inline uint64_t swizzled_descriptor(uint32_t shared_address) {
  return static_cast<uint64_t>((shared_address & 0x3ffffu) >> 4) | (uint64_t{1} << 16) | (uint64_t{1024 >> 4} << 32) |
         (uint64_t{1} << 62);
}

}  // namespace
}  // namespace jepa
