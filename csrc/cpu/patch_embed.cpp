// Patches to rows and back on CPUs: checks, threads, dispatch by instruction set.
#include <string>
#include <vector>

#include "jepa/isa.h"
#include "jepa/parallel.h"
#include "patch_embed_kernel.h"

namespace jepa {

void pack_rows_avx2(const PackTask&, int64_t, int64_t);
void pack_rows_avx512(const PackTask&, int64_t, int64_t);
void pack_rows_avx512_bf16(const PackTask&, int64_t, int64_t);
void unpack_patches_avx2(const UnpackTask&, int64_t, int64_t);
void unpack_patches_avx512(const UnpackTask&, int64_t, int64_t);

namespace {

// Patches a task: about 50 KiB of packed bf16, so that a call's work balances over threads and one task amortises its start.
constexpr int64_t kChunk = 16;

auto pack_kernel() {
#if defined(JEPA_HAVE_AVX512_BF16)
  if (active_isa() >= Isa::kAvx512Bf16) return pack_rows_avx512_bf16;
#endif
#if defined(JEPA_HAVE_AVX512)
  if (active_isa() >= Isa::kAvx512) return pack_rows_avx512;
#endif
#if defined(JEPA_HAVE_AVX2)
  if (active_isa() >= Isa::kAvx2) return pack_rows_avx2;
#endif
  return pack_rows;
}

auto unpack_kernel() {
#if defined(JEPA_HAVE_AVX512)
  if (active_isa() >= Isa::kAvx512) return unpack_patches_avx512;
#endif
#if defined(JEPA_HAVE_AVX2)
  if (active_isa() >= Isa::kAvx2) return unpack_patches_avx2;
#endif
  return unpack_patches;
}

bool is_floating(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

void check_floating(const TensorView& view, const char* name) {
  if (!is_floating(view.dtype)) fail(std::string(name) + ": dtype " + name_of(view.dtype) + " is not floating point");
}

PatchGrid grid_of(const TensorView& pixels, const int64_t (&patch)[3]) {
  check_ndim(pixels, 5, "pixels");
  check_view(pixels, "pixels");
  PatchGrid g{};
  g.batch = pixels.sizes[0];
  g.channels = pixels.sizes[1];
  g.patch_t = patch[0], g.patch_h = patch[1], g.patch_w = patch[2];
  for (int d = 0; d < 3; ++d) {
    if (patch[d] <= 0) fail("patch size " + std::to_string(patch[d]) + " is not positive");
    if (pixels.sizes[2 + d] % patch[d] != 0)
      fail("pixels: size " + std::to_string(pixels.sizes[2 + d]) + " is not a multiple of the patch size " + std::to_string(patch[d]));
  }
  g.grid_t = pixels.sizes[2] / patch[0], g.grid_h = pixels.sizes[3] / patch[1], g.grid_w = pixels.sizes[4] / patch[2];
  g.stride_b = pixels.strides[0], g.stride_c = pixels.strides[1], g.stride_t = pixels.strides[2];
  g.stride_h = pixels.strides[3], g.stride_w = pixels.strides[4];
  return g;
}

void check_matrix(const TensorView& matrix, const PatchGrid& g, const char* name) {
  check_ndim(matrix, 2, name);
  check_view(matrix, name);
  check_floating(matrix, name);
  check_size(matrix, 1, g.row_size(), name);
  if (matrix.sizes[1] > 1 && matrix.strides[1] != 1) fail(std::string(name) + ": the row elements must be adjacent");
}

// Null where every patch is meant in order; else the checked ids.
const int64_t* checked_rows(const TensorView& rows, int64_t first, int64_t count, int64_t patches) {
  if (!rows.defined()) return nullptr;
  check_dtype(rows, DType::kInt64, "rows");
  check_ndim(rows, 1, "rows");
  check_size(rows, 0, count, "rows");
  check_view(rows, "rows");
  if (!rows.is_contiguous()) fail("rows: must be contiguous");
  const int64_t* ids = rows.as<const int64_t>();
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= patches)
      fail("patch_embed: kept id " + std::to_string(first + i) +
           ", counted over all of keep, is out of range; or keep is RaggedIds whose cu_seqlens do not rise from 0 to the number of ids");
  return ids;
}

// float64 copies: exact for both dtypes, and read once a patch run.
std::vector<double> channel_values(const TensorView& view, int64_t channels, double absent, const char* name) {
  std::vector<double> values(static_cast<size_t>(channels), absent);
  if (!view.defined()) return values;
  check_ndim(view, 1, name);
  check_size(view, 0, channels, name);
  check_view(view, name);
  if (view.dtype != DType::kFloat32 && view.dtype != DType::kFloat64)
    fail(std::string(name) + ": expected float32 or float64, got " + name_of(view.dtype));
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t at = c * view.strides[0];
    values[static_cast<size_t>(c)] = view.dtype == DType::kFloat32 ? view.as<const float>()[at] : view.as<const double>()[at];
  }
  return values;
}

std::vector<double> inverses(const TensorView& std_view, int64_t channels) {
  std::vector<double> values = channel_values(std_view, channels, 1.0, "std");
  for (double& value : values) {
    if (value == 0.0) fail("std: a channel's standard deviation is 0");
    value = 1.0 / value;
  }
  return values;
}

}  // namespace

int64_t kept_rows_cpu(const TensorView& ids, int64_t tokens, const TensorView& rows) {
  check_dtype(ids, DType::kInt64, "ids");
  check_ndim(ids, 2, "ids");
  check_view(ids, "ids");
  check_dtype(rows, DType::kInt64, "rows");
  check_ndim(rows, 1, "rows");
  check_size(rows, 0, ids.sizes[0] * ids.sizes[1], "rows");
  check_view(rows, "rows");
  if (!rows.is_contiguous()) fail("rows: must be contiguous");
  int64_t place = 0, first_outside = -1;
  for (int64_t b = 0; b < ids.sizes[0]; ++b)
    for (int64_t i = 0; i < ids.sizes[1]; ++i, ++place) {
      const int64_t id = ids.as<const int64_t>()[b * ids.strides[0] + i * ids.strides[1]];
      const bool inside = id >= 0 && id < tokens;
      rows.as<int64_t>()[place] = inside ? id + b * tokens : -1;
      if (!inside && first_outside < 0) first_outside = place;
    }
  return first_outside;
}

void pack_patches_cpu(const TensorView& pixels, const TensorView& rows, int64_t first_row, const TensorView& mean, const TensorView& std,
                      const int64_t (&patch)[3], const TensorView& out, int num_threads) {
  PackTask task{};
  task.grid = grid_of(pixels, patch);
  if (pixels.dtype != DType::kUInt8) check_floating(pixels, "pixels");
  check_matrix(out, task.grid, "out");
  const int64_t count = out.sizes[0];
  task.rows = checked_rows(rows, first_row, count, task.grid.patches());
  if (task.rows == nullptr && !rows.defined() && (first_row < 0 || first_row + count > task.grid.patches()))
    fail("out: rows " + std::to_string(first_row) + " to " + std::to_string(first_row + count) + " of " +
         std::to_string(task.grid.patches()) + " patches");
  const std::vector<double> means = channel_values(mean, task.grid.channels, 0.0, "mean");
  const std::vector<double> inv_stds = inverses(std, task.grid.channels);
  task.first_row = first_row;
  task.pixels = pixels.data, task.pixel_dtype = pixels.dtype;
  task.mean = means.data(), task.inv_std = inv_stds.data();
  task.out = out.data, task.out_dtype = out.dtype, task.out_stride = out.strides[0];
  const auto kernel = pack_kernel();
  parallel_for((count + kChunk - 1) / kChunk, num_threads, [&](int64_t i) {
    const int64_t begin = i * kChunk;
    kernel(task, begin, begin + kChunk < count ? begin + kChunk : count);
  });
}

void unpack_patches_cpu(const TensorView& packed, const TensorView& rows, const TensorView& std, const int64_t (&patch)[3],
                        const TensorView& pixels, int num_threads) {
  UnpackTask task{};
  task.grid = grid_of(pixels, patch);
  check_floating(pixels, "pixels");
  check_matrix(packed, task.grid, "packed");
  const int64_t patches = task.grid.patches(), count = packed.sizes[0];
  const int64_t* ids = checked_rows(rows, 0, count, patches);
  if (!rows.defined() && count != patches) fail("packed: " + std::to_string(count) + " rows for " + std::to_string(patches) + " patches");
  // A stable counting sort: rows of the same patch add up in the order of their appearance, whatever the number of threads.
  std::vector<int64_t> starts(static_cast<size_t>(patches) + 1, 0), order(static_cast<size_t>(count));
  const auto patch_of = [&](int64_t i) { return static_cast<size_t>(ids != nullptr ? ids[i] : i); };
  for (int64_t i = 0; i < count; ++i) ++starts[patch_of(i) + 1];
  for (size_t p = 0; p < static_cast<size_t>(patches); ++p) starts[p + 1] += starts[p];
  std::vector<int64_t> next(starts.begin(), starts.end() - 1);
  for (int64_t i = 0; i < count; ++i) order[static_cast<size_t>(next[patch_of(i)]++)] = i;
  const std::vector<double> inv_stds = inverses(std, task.grid.channels);
  task.packed = packed.data, task.packed_dtype = packed.dtype, task.packed_stride = packed.strides[0];
  task.starts = starts.data(), task.order = order.data(), task.inv_std = inv_stds.data();
  task.pixels = pixels.data, task.pixel_dtype = pixels.dtype;
  const auto kernel = unpack_kernel();
  parallel_for((patches + kChunk - 1) / kChunk, num_threads, [&](int64_t i) {
    const int64_t begin = i * kChunk;
    kernel(task, begin, begin + kChunk < patches ? begin + kChunk : patches);
  });
}

}  // namespace jepa
