// Interface of the patch embedding on GPUs: one implicit matrix product, from pixels in place to tokens.
#pragma once

#include <cstdint>

#include "jepa/float_types.h"
#include "jepa/tensor_view.h"

namespace jepa {

// Columns that a tile of the product steps by; tables and padding are multiples of it.
constexpr int kPatchEmbedStep = 64;

// Which kernel runs: tensor-core instructions of a warp (compute capability 8.0 and later), or of a warpgroup (9.0 alone).
enum class PatchEmbedPath : int { kWarp = 0, kWarpgroup = 1 };

// Pixels (batch, channel, frame, height, width) as patches. With `interleaved`, columns of the product run over
// (frame, y, x, channel) as a decoder lays pixels out; else over (channel, frame, y, x) as a convolution's weight does.
struct PatchGeometry {
  int64_t batch;
  int channels, patch_t, patch_h, patch_w;
  int grid_t, grid_h, grid_w;
  int64_t stride_b, stride_c, stride_t, stride_h, stride_w;  // elements
  bool interleaved;

  JEPA_HOST_DEVICE int64_t tokens() const { return static_cast<int64_t>(grid_t) * grid_h * grid_w; }
  JEPA_HOST_DEVICE int columns() const { return channels * patch_t * patch_h * patch_w; }
};

// A column of the product: where its pixel lies in a patch, and how it is normalised.
struct PatchColumn {
  int32_t offset;  // elements from the patch's first pixel
  float mean;
  float inv_std;
  int32_t unused;  // 16 bytes an entry: one load
};

struct PatchEmbedCall {
  PatchGeometry geometry;
  const void* pixels;
  DType pixel_dtype;
  const void* weight;  // [width, weight_stride], columns in the geometry's order, zeros from columns() on
  int64_t weight_stride;
  DType weight_dtype;      // bfloat16 or float16: the type of the product
  const void* bias;        // [width] of weight_dtype, or null
  const int64_t* rows;     // [num_rows] indices of patches, those out of range for NaN; null for all patches in order
  const void* pos_embed;   // [tokens, width], or null
  DType pos_dtype;
  const float* mean;       // [channels], or null for 0
  const float* std;        // [channels], or null for 1
  PatchColumn* table;      // workspace: [columns rounded up to kPatchEmbedStep]
  void* out;               // [num_rows, width]
  DType out_dtype;         // weight_dtype or float32
  int64_t num_rows;
  int width;
};

void patch_embed_cuda(const PatchEmbedCall& call, PatchEmbedPath path, void* stream);

}  // namespace jepa
