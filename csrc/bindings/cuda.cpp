// Python module jepa_kernels._cuda: the CUDA kernels. It imports without a driver; the first launch then fails with the
// runtime's reason.
#include <pybind11/pybind11.h>

#include "cuda_operators.h"
#include "jepa/ema_update_cuda.h"
#include "tensor_view_caster.h"

namespace py = pybind11;

namespace {

void check_scalar(const jepa::TensorView& view, jepa::DType dtype, const char* name) {
  jepa::check_view(view, name);
  jepa::check_dtype(view, dtype, name);
  if (view.numel() != 1) jepa::fail(std::string(name) + ": expected one value, got " + std::to_string(view.numel()));
}

void ema_update(const jepa::TensorView& table, const jepa::TensorView& chunks, int target_dtype, int online_dtype,
                int shadow_dtype, bool aligned, double weight, const jepa::TensorView& momentum,
                bool stochastic_rounding, uint64_t seed, const jepa::TensorView& seed_tensor, int chunk,
                uintptr_t stream) {
  jepa::check_view(table, "table");
  jepa::check_view(chunks, "chunks");
  jepa::check_dtype(table, jepa::DType::kInt64, "table");
  jepa::check_dtype(chunks, jepa::DType::kInt32, "chunks");
  jepa::check_ndim(table, 2, "table");
  jepa::check_ndim(chunks, 2, "chunks");
  jepa::check_size(table, 1, 5, "table");
  jepa::check_size(chunks, 1, 2, "chunks");
  if (!table.is_contiguous() || !chunks.is_contiguous()) jepa::fail("ema_update: table and chunks must be contiguous");
  if (chunk <= 0 || chunk % 8 != 0)
    jepa::fail("ema_update: chunk must be a positive multiple of 8, got " + std::to_string(chunk));
  const jepa::EmaPlan plan{table.as<const int64_t>(),
                           chunks.as<const int32_t>(),
                           chunks.sizes[0],
                           chunk,
                           static_cast<jepa::DType>(target_dtype),
                           static_cast<jepa::DType>(online_dtype),
                           shadow_dtype,
                           aligned};
  if (momentum.defined()) check_scalar(momentum, jepa::DType::kFloat64, "momentum");
  if (seed_tensor.defined()) check_scalar(seed_tensor, jepa::DType::kInt64, "seed");
  const jepa::EmaStep step{weight, momentum.as<const double>(), stochastic_rounding, seed,
                           seed_tensor.as<const int64_t>()};
  py::gil_scoped_release unlocked;
  jepa::ema_update_cuda(plan, step, reinterpret_cast<void*>(stream));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of jepa_kernels. Tensors come as addresses; jepa_kernels.ops is the public way in.";
  m.def("ema_update", &ema_update, py::arg("table"), py::arg("chunks"), py::arg("target_dtype"),
        py::arg("online_dtype"), py::arg("shadow_dtype"), py::arg("aligned"), py::arg("weight"), py::arg("momentum"),
        py::arg("stochastic_rounding"), py::arg("seed"), py::arg("seed_tensor"), py::arg("chunk"), py::arg("stream"));
  jepa::bind_adamw_ema_cuda(m);
  jepa::bind_masked_attention_cuda(m);
  jepa::bind_patch_embed_cuda(m);
}
