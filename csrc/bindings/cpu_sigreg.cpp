// Binding of SIGReg's sums on CPUs.
#include "cpu_operators.h"
#include "jepa/sigreg.h"
#include "tensor_view_caster.h"

namespace jepa {

namespace py = pybind11;

void bind_sigreg(py::module_& m) {
  m.def("sigreg_forward", &sigreg_forward_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("directions"),
        py::arg("sums"), py::arg("step"), py::arg("num_threads"));
  m.def("sigreg_backward", &sigreg_backward_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("grad_sums"), py::arg("x"),
        py::arg("directions"), py::arg("grad_x"), py::arg("step"), py::arg("num_threads"));
  m.def("sigreg_fit", &sigreg_fit_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("directions"), py::arg("phi"),
        py::arg("weights"), py::arg("grad_x"), py::arg("step"), py::arg("num_threads"));
}

}  // namespace jepa
