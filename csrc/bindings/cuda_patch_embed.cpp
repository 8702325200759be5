// Binding of the patch embedding on GPUs.
#include <string>

#include "checks.h"
#include "cuda_operators.h"
#include "jepa/patch_embed_cuda.h"
#include "tensor_view_caster.h"

namespace jepa {

namespace py = pybind11;

namespace {

constexpr const char* kOperator = "patch_embed";
constexpr int64_t kMaxSize = INT32_MAX;

void check_aligned(const TensorView& view, const char* name) {
  if (reinterpret_cast<uintptr_t>(view.data) % 16 != 0) fail(std::string("patch_embed: ") + name + " is not aligned to 16 bytes");
}

bool is_half(DType dtype) { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

PatchGeometry geometry_of(const TensorView& pixels, int64_t patch_t, int64_t patch_h, int64_t patch_w, bool interleaved) {
  check_ndim(pixels, 5, "pixels");
  check_view(pixels, "pixels");
  if (pixels.dtype != DType::kUInt8 && pixels.dtype != DType::kFloat32 && !is_half(pixels.dtype))
    fail(std::string("patch_embed: no kernel for pixels of ") + name_of(pixels.dtype));
  const int64_t patch[] = {patch_t, patch_h, patch_w};
  int64_t reach = (pixels.sizes[1] - 1) * pixels.strides[1], grid[3], columns = pixels.sizes[1];
  for (int d = 0; d < 3; ++d) {
    const int64_t size = pixels.sizes[2 + d];
    if (patch[d] <= 0 || size % patch[d] != 0)
      fail("pixels: size " + std::to_string(size) + " is not a multiple of the patch size " + std::to_string(patch[d]));
    grid[d] = size / patch[d];
    reach += (patch[d] - 1) * pixels.strides[2 + d];
    columns *= patch[d];
    if (size > kMaxSize || columns > kMaxSize / 2) fail("patch_embed: a patch or a frame is too large for the kernel");
  }
  if (reach > kMaxSize) fail("patch_embed: the pixels of a patch lie further apart than 2^31 elements");
  PatchGeometry g{};
  g.batch = pixels.sizes[0], g.channels = static_cast<int>(pixels.sizes[1]);
  g.patch_t = static_cast<int>(patch_t), g.patch_h = static_cast<int>(patch_h), g.patch_w = static_cast<int>(patch_w);
  g.grid_t = static_cast<int>(grid[0]), g.grid_h = static_cast<int>(grid[1]), g.grid_w = static_cast<int>(grid[2]);
  g.stride_b = pixels.strides[0], g.stride_c = pixels.strides[1], g.stride_t = pixels.strides[2];
  g.stride_h = pixels.strides[3], g.stride_w = pixels.strides[4];
  g.interleaved = interleaved;
  return g;
}

void check_weight(const TensorView& weight, const TensorView& bias, const PatchGeometry& g) {
  check_view(weight, "weight");
  check_ndim(weight, 2, "weight");
  if (!is_half(weight.dtype)) fail(std::string("patch_embed: no kernel for a weight of ") + name_of(weight.dtype));
  const int64_t stride = weight.sizes[1];
  if (!weight.is_contiguous() || stride % 8 != 0 || stride < g.columns() || weight.sizes[0] > kMaxSize)
    fail("weight: expected contiguous rows of at least " + std::to_string(g.columns()) + " columns, padded to a multiple of 8");
  check_aligned(weight, "weight");
  if (bias.defined()) check_contiguous(bias, weight.dtype, {weight.sizes[0]}, kOperator, "bias");
}

void patch_embed(const TensorView& pixels, const TensorView& weight, const TensorView& bias, const TensorView& rows,
                 const TensorView& pos_embed, const TensorView& mean, const TensorView& std, const TensorView& table,
                 const TensorView& out, int64_t patch_t, int64_t patch_h, int64_t patch_w, bool interleaved, int path,
                 uintptr_t stream) {
  PatchEmbedCall call{};
  call.geometry = geometry_of(pixels, patch_t, patch_h, patch_w, interleaved);
  const PatchGeometry& g = call.geometry;
  check_weight(weight, bias, g);
  check_view(out, "out");
  check_ndim(out, 2, "out");
  const int64_t count = out.sizes[0], width = weight.sizes[0];
  check_size(out, 1, width, "out");
  check_aligned(out, "out");
  if (!out.is_contiguous() || (out.dtype != weight.dtype && out.dtype != DType::kFloat32))
    fail("out: expected a contiguous matrix of float32 or of the weight's type");
  if (rows.defined())
    check_contiguous(rows, DType::kInt64, {count}, kOperator, "rows");
  else if (count != g.batch * g.tokens())
    fail("out: " + std::to_string(count) + " rows for " + std::to_string(g.batch * g.tokens()) + " patches");
  if (pos_embed.defined()) check_contiguous(pos_embed, pos_embed.dtype, {g.tokens(), width}, kOperator, "pos_embed");
  if (pos_embed.defined() && pos_embed.dtype != DType::kFloat32 && !is_half(pos_embed.dtype))
    fail(std::string("patch_embed: no kernel for pos_embed of ") + name_of(pos_embed.dtype));
  if (mean.defined()) check_contiguous(mean, DType::kFloat32, {g.channels}, kOperator, "mean");
  if (std.defined()) check_contiguous(std, DType::kFloat32, {g.channels}, kOperator, "std");
  const int64_t padded = (g.columns() + kPatchEmbedStep - 1) / kPatchEmbedStep * kPatchEmbedStep;
  check_contiguous(table, DType::kInt32, {padded, 4}, kOperator, "table");
  check_aligned(table, "table");
  if (path != 0 && path != 1) fail("patch_embed: path " + std::to_string(path) + " is neither 0 (warp) nor 1 (warpgroup)");
  call.pixels = pixels.data, call.pixel_dtype = pixels.dtype;
  call.weight = weight.data, call.weight_stride = weight.sizes[1], call.weight_dtype = weight.dtype;
  call.bias = bias.data, call.rows = rows.as<const int64_t>();
  call.pos_embed = pos_embed.data, call.pos_dtype = pos_embed.dtype;
  call.mean = mean.as<const float>(), call.std = std.as<const float>();
  call.table = table.as<PatchColumn>();
  call.out = out.data, call.out_dtype = out.dtype;
  call.num_rows = count, call.width = static_cast<int>(width);
  py::gil_scoped_release unlocked;
  patch_embed_cuda(call, static_cast<PatchEmbedPath>(path), reinterpret_cast<void*>(stream));
}

}  // namespace

void bind_patch_embed_cuda(py::module_& m) {
  m.def("patch_embed", &patch_embed, py::arg("pixels"), py::arg("weight"), py::arg("bias"), py::arg("rows"),
        py::arg("pos_embed"), py::arg("mean"), py::arg("std"), py::arg("table"), py::arg("out"), py::arg("patch_t"),
        py::arg("patch_h"), py::arg("patch_w"), py::arg("interleaved"), py::arg("path"), py::arg("stream"));
}

}  // namespace jepa
