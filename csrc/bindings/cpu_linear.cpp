// Binding of the linear layer's products on CPUs.
#include "cpu_operators.h"
#include "jepa/linear.h"
#include "tensor_view_caster.h"

namespace jepa {

namespace py = pybind11;

void bind_linear(py::module_& m) {
  using Released = py::call_guard<py::gil_scoped_release>;
  m.def("linear_forward", &linear_forward_cpu, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("gelu"), py::arg("pre"),
        py::arg("y"), py::arg("num_threads"), Released());
  m.def("mlp_forward", &mlp_forward_cpu, py::arg("x"), py::arg("weight1"), py::arg("bias1"), py::arg("weight2"), py::arg("bias2"),
        py::arg("y"), py::arg("num_threads"), Released());
  m.def("linear_input_gradient", &linear_input_gradient_cpu, py::arg("dy"), py::arg("weight"), py::arg("pre"), py::arg("dx"),
        py::arg("num_threads"), Released());
  m.def("linear_weight_gradient", &linear_weight_gradient_cpu, py::arg("dy"), py::arg("x"), py::arg("dweight"), py::arg("dbias"),
        py::arg("num_threads"), Released());
}

}  // namespace jepa
