// Binding of the EMA update on CPUs.
#include "cpu_operators.h"
#include "ema_tensors.h"

namespace jepa {

namespace py = pybind11;

void bind_ema_update(py::module_& m) {
  py::class_<EmaTensors>(m, "EmaTensors",
                         "The tensors of an EMA update, checked once: (address, dtype code, elements) each.")
      .def(py::init([](const py::list& targets, const py::list& online, const py::list& shadows) {
             return std::make_unique<EmaTensors>(ema_tensors(targets, online, shadows));
           }),
           py::arg("targets"), py::arg("online"), py::arg("shadows"))
      .def("update", &EmaTensors::update, py::call_guard<py::gil_scoped_release>(), py::arg("weight"),
           py::arg("stochastic_rounding"), py::arg("seed"), py::arg("num_threads"));
}

}  // namespace jepa
