// Binding of AdamW with EMA on GPUs.
#include <string>

#include "cuda_operators.h"
#include "jepa/adamw_ema_cuda.h"
#include "tensor_view_caster.h"

namespace jepa {

namespace py = pybind11;

namespace {

void check(const TensorView& view, DType dtype, int64_t columns, const char* name) {
  check_view(view, name);
  check_dtype(view, dtype, name);
  if (!view.is_contiguous()) fail(std::string("adamw_ema: ") + name + " must be contiguous");
  if (columns == 0) return check_ndim(view, 1, name);
  check_ndim(view, 2, name);
  check_size(view, 1, columns, name);
}

AdamWLaunch checked(const TensorView& table, const TensorView& grads, const TensorView& chunks, int grad_dtype,
                    bool aligned, int chunk) {
  check(table, DType::kInt64, 9, "table");
  check(grads, DType::kInt64, 0, "grads");
  check(chunks, DType::kInt32, 2, "chunks");
  check_size(grads, 0, table.sizes[0], "grads");
  if (chunk <= 0 || chunk % 8 != 0)
    fail("adamw_ema: chunk must be a positive multiple of 8, got " + std::to_string(chunk));
  return {table.as<const int64_t>(),
          grads.as<const int64_t>(),
          chunks.as<const int32_t>(),
          chunks.sizes[0],
          chunk,
          static_cast<DType>(grad_dtype),
          aligned};
}

void sum_of_squares(const TensorView& table, const TensorView& grads, const TensorView& chunks,
                    const TensorView& partials, int grad_dtype, bool aligned, int chunk, uintptr_t stream) {
  const AdamWLaunch launch = checked(table, grads, chunks, grad_dtype, aligned, chunk);
  check(partials, DType::kFloat64, 0, "partials");
  check_size(partials, 0, launch.programs, "partials");
  py::gil_scoped_release unlocked;
  adamw_ema_sum_of_squares_cuda(launch, partials.as<double>(), reinterpret_cast<void*>(stream));
}

void prepare(const TensorView& table, const TensorView& hyper, const TensorView& control, const TensorView& squares,
             const TensorView& status, const TensorView& coefficients, const TensorView& shared, uintptr_t stream) {
  check(table, DType::kInt64, 9, "table");
  check(hyper, DType::kFloat64, 5, "hyper");
  check(control, DType::kFloat64, 0, "control");
  check_size(control, 0, 4, "control");
  check(status, DType::kFloat64, 0, "status");
  check_size(status, 0, 3, "status");
  check(coefficients, DType::kFloat32, 2, "coefficients");
  check_size(coefficients, 0, table.sizes[0], "coefficients");
  check(shared, DType::kFloat32, 0, "shared");
  check_size(shared, 0, 3, "shared");
  if (squares.defined()) {
    check_view(squares, "squares");
    check_dtype(squares, DType::kFloat64, "squares");
  }
  py::gil_scoped_release unlocked;
  adamw_ema_prepare_cuda(table.as<const int64_t>(), table.sizes[0], hyper.as<const double>(),
                         control.as<const double>(), squares.as<const double>(), status.as<double>(),
                         coefficients.as<float>(), shared.as<float>(), reinterpret_cast<void*>(stream));
}

void step(const TensorView& table, const TensorView& grads, const TensorView& chunks, const TensorView& hyper,
          const TensorView& coefficients, const TensorView& shared, int grad_dtype, bool target, int param_shadow_dtype,
          int target_shadow_dtype, bool aligned, int chunk, uintptr_t stream) {
  const AdamWLaunch launch = checked(table, grads, chunks, grad_dtype, aligned, chunk);
  check(hyper, DType::kFloat64, 5, "hyper");
  check(coefficients, DType::kFloat32, 2, "coefficients");
  check(shared, DType::kFloat32, 0, "shared");
  py::gil_scoped_release unlocked;
  adamw_ema_step_cuda(launch, hyper.as<const double>(), coefficients.as<const float>(), shared.as<const float>(),
                      target, param_shadow_dtype, target_shadow_dtype, reinterpret_cast<void*>(stream));
}

}  // namespace

void bind_adamw_ema_cuda(py::module_& m) {
  m.def("adamw_ema_sum_of_squares", &sum_of_squares, py::arg("table"), py::arg("grads"), py::arg("chunks"),
        py::arg("partials"), py::arg("grad_dtype"), py::arg("aligned"), py::arg("chunk"), py::arg("stream"));
  m.def("adamw_ema_prepare", &prepare, py::arg("table"), py::arg("hyper"), py::arg("control"), py::arg("squares"),
        py::arg("status"), py::arg("coefficients"), py::arg("shared"), py::arg("stream"));
  m.def("adamw_ema_step", &step, py::arg("table"), py::arg("grads"), py::arg("chunks"), py::arg("hyper"),
        py::arg("coefficients"), py::arg("shared"), py::arg("grad_dtype"), py::arg("target"),
        py::arg("param_shadow_dtype"), py::arg("target_shadow_dtype"), py::arg("aligned"), py::arg("chunk"),
        py::arg("stream"));
}

}  // namespace jepa
