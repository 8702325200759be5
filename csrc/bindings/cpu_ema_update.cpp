// Binding of the EMA update on CPUs.
#include "cpu_operators.h"
#include "ema_tensors.h"

namespace jepa {

namespace py = pybind11;

void bind_ema_update(py::module_& m) {
  m.def(
      "ema_update",
      [](const py::list& targets, const py::list& online, const py::list& shadows, double weight, bool stochastic_rounding, uint64_t seed,
         int num_threads) {
        const std::vector<EmaTensor> tensors = ema_tensors(targets, online, shadows);
        py::gil_scoped_release unlocked;
        ema_update_cpu(tensors, weight, stochastic_rounding, seed, num_threads);
      },
      py::arg("targets"), py::arg("online"), py::arg("shadows"), py::arg("weight"), py::arg("stochastic_rounding"), py::arg("seed"),
      py::arg("num_threads"));
}

}  // namespace jepa
