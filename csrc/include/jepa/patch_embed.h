// Patches of an image or clip as rows of a matrix, and back: interface of the CPU implementation.
#pragma once

#include <cstdint>

#include "jepa/tensor_view.h"

namespace jepa {

// How pixels (batch, channel, frame, height, width) divide into patches. Token id = t * grid_h * grid_w + r * grid_w + c,
// patch index = batch * tokens + token id, and one row holds channels * patch_t * patch_h * patch_w values in that order.
struct PatchGrid {
  int64_t batch, channels, patch_t, patch_h, patch_w;
  int64_t grid_t, grid_h, grid_w;
  int64_t stride_b, stride_c, stride_t, stride_h, stride_w;  // of the pixels, in elements

  int64_t tokens() const { return grid_t * grid_h * grid_w; }
  int64_t patches() const { return batch * tokens(); }
  int64_t row_size() const { return channels * patch_t * patch_h * patch_w; }

  // Offset of a patch's first pixel.
  int64_t origin(int64_t patch) const {
    const int64_t c = patch % grid_w, r = patch / grid_w % grid_h;
    const int64_t t = patch / (grid_w * grid_h) % grid_t, b = patch / tokens();
    return b * stride_b + t * patch_t * stride_t + r * patch_h * stride_h + c * patch_w * stride_w;
  }
};

// out[i] = normalised pixels of patch rows[i], or of patch first_row + i where rows is null: (x - mean[c]) * inv_std[c] in float32
// (float64 for a float64 out), rounded once.
struct PackTask {
  PatchGrid grid;
  const void* pixels;
  DType pixel_dtype;
  const int64_t* rows;
  int64_t first_row;
  const double* mean;     // (channels,)
  const double* inv_std;  // (channels,)
  void* out;
  DType out_dtype;
  int64_t out_stride;  // elements from row to row
};

// pixels[patch] = inv_std[c] * sum of packed[order[i]] over i in [starts[patch], starts[patch + 1]), added in that order in float32
// (float64 for float64 packed). Every pixel is written.
struct UnpackTask {
  PatchGrid grid;
  const void* packed;
  DType packed_dtype;
  int64_t packed_stride;
  const int64_t* starts;
  const int64_t* order;
  const double* inv_std;
  void* pixels;
  DType pixel_dtype;
};

// rows[b * kept + i] = ids[b, i] + b * tokens, or -1 where the id lies outside [0, tokens). Returns the place of the first such id in
// `rows`, -1 where there is none.
int64_t kept_rows_cpu(const TensorView& ids, int64_t tokens, const TensorView& rows);

// Entry points of the bindings. `mean` and `std` are float32 or float64 (C,) or undefined; `rows` int64 (R,) or undefined.
void pack_patches_cpu(const TensorView& pixels, const TensorView& rows, int64_t first_row, const TensorView& mean, const TensorView& std,
                      const int64_t (&patch)[3], const TensorView& out, int num_threads);
void unpack_patches_cpu(const TensorView& packed, const TensorView& rows, const TensorView& std, const int64_t (&patch)[3],
                        const TensorView& pixels, int num_threads);

}  // namespace jepa
