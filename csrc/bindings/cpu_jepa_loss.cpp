// Binding of the JEPA loss on CPUs.
#include "cpu_operators.h"
#include "jepa/jepa_loss.h"
#include "tensor_view_caster.h"

namespace jepa {

namespace py = pybind11;

namespace {

JepaLossOptions loss_options(int kind, double parameter, bool normalize, double eps, bool affine, double affine_eps, double scale,
                             int num_threads) {
  if (kind < 0 || kind > static_cast<int>(LossKind::kPower)) fail("jepa_loss: unknown kind " + std::to_string(kind));
  JepaLossOptions options;
  options.kind = static_cast<LossKind>(kind);
  options.parameter = parameter;
  options.normalize = normalize;
  options.eps = eps;
  options.affine = affine;
  options.affine_eps = affine_eps;
  options.scale = scale;
  options.num_threads = num_threads;
  return options;
}

}  // namespace

void bind_jepa_loss(py::module_& m) {
  py::class_<JepaLossOptions>(m, "JepaLossOptions")
      .def(py::init(&loss_options), py::arg("kind"), py::arg("parameter"), py::arg("normalize"), py::arg("eps"), py::arg("affine"),
           py::arg("affine_eps"), py::arg("scale"), py::arg("num_threads"));
  m.def("jepa_loss_forward", &jepa_loss_forward_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("pred"), py::arg("target"),
        py::arg("rows"), py::arg("weights"), py::arg("norm_weight"), py::arg("norm_bias"), py::arg("loss"), py::arg("options"));
  m.def("jepa_loss_backward", &jepa_loss_backward_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("grad"), py::arg("pred"),
        py::arg("target"), py::arg("rows"), py::arg("weights"), py::arg("norm_weight"), py::arg("norm_bias"), py::arg("grad_pred"),
        py::arg("options"));
  m.def("jepa_loss_fit", &jepa_loss_fit_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("pred"), py::arg("target"),
        py::arg("rows"), py::arg("weights"), py::arg("norm_weight"), py::arg("norm_bias"), py::arg("loss"), py::arg("grad_pred"),
        py::arg("options"));
}

}  // namespace jepa
