// Binding of AdamW with EMA on CPUs.
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "cpu_operators.h"
#include "jepa/adamw_ema.h"

namespace jepa {

namespace py = pybind11;

namespace {

// One tensor as Python describes it: eight addresses (0 for none), element count, three dtype codes, group.
using Row = std::array<uintptr_t, 8>;

std::unique_ptr<AdamWTensors> make(const std::vector<Row>& addresses, const std::vector<std::array<int64_t, 5>>& rest) {
  if (addresses.size() != rest.size()) fail("adamw_ema: lists of different lengths");
  std::vector<AdamWTensor> tensors;
  tensors.reserve(addresses.size());
  for (size_t i = 0; i < addresses.size(); ++i) {
    const Row& a = addresses[i];
    const auto& [numel, grad_dtype, param_shadow_dtype, target_shadow_dtype, group] = rest[i];
    tensors.push_back({reinterpret_cast<float*>(a[0]), reinterpret_cast<const void*>(a[1]),
                       reinterpret_cast<float*>(a[2]), reinterpret_cast<float*>(a[3]), reinterpret_cast<float*>(a[4]),
                       reinterpret_cast<float*>(a[5]), reinterpret_cast<void*>(a[6]), reinterpret_cast<void*>(a[7]),
                       numel, static_cast<DType>(grad_dtype), static_cast<DType>(param_shadow_dtype),
                       static_cast<DType>(target_shadow_dtype), static_cast<int>(group)});
  }
  return std::make_unique<AdamWTensors>(std::move(tensors));
}

void set_grads(AdamWTensors& self, const std::vector<uintptr_t>& addresses, const std::vector<int>& dtypes) {
  if (addresses.size() != self.size() || dtypes.size() != self.size())
    fail("adamw_ema: " + std::to_string(addresses.size()) + " gradients for " + std::to_string(self.size()) +
         " tensors");
  for (size_t i = 0; i < addresses.size(); ++i)
    self.set_grad(i, reinterpret_cast<const void*>(addresses[i]), static_cast<DType>(dtypes[i]));
}

void update(AdamWTensors& self, const std::vector<std::array<double, 5>>& groups, double momentum, double grad_factor,
            int num_threads) {
  std::vector<AdamWGroup> hyper;
  hyper.reserve(groups.size());
  for (const auto& [lr, beta1, beta2, eps, weight_decay] : groups)
    hyper.push_back({lr, beta1, beta2, eps, weight_decay});
  py::gil_scoped_release unlocked;
  self.update(hyper, momentum, grad_factor, num_threads);
}

}  // namespace

void bind_adamw_ema(py::module_& m) {
  py::class_<AdamWTensors>(m, "AdamWTensors", "The tensors of one AdamW step with EMA, checked once.")
      .def(py::init(&make), py::arg("addresses"), py::arg("rest"))
      .def("set_grads", &set_grads, py::arg("addresses"), py::arg("dtypes"))
      .def("sum_of_squares", &AdamWTensors::sum_of_squares, py::call_guard<py::gil_scoped_release>(),
           py::arg("num_threads"))
      .def("update", &update, py::arg("groups"), py::arg("momentum"), py::arg("grad_factor"), py::arg("num_threads"));
}

}  // namespace jepa
