// Binding of the patch packer on CPUs.
#include "cpu_operators.h"
#include "jepa/patch_embed.h"
#include "tensor_view_caster.h"

namespace jepa {

namespace py = pybind11;

void bind_patch_embed(py::module_& m) {
  m.def("kept_rows", &kept_rows_cpu, py::arg("ids"), py::arg("tokens"), py::arg("rows"));
  m.def(
      "pack_patches",
      [](const TensorView& pixels, const TensorView& rows, int64_t first_row, const TensorView& mean, const TensorView& std, int64_t patch_t,
         int64_t patch_h, int64_t patch_w, const TensorView& out, int num_threads) {
        py::gil_scoped_release unlocked;
        pack_patches_cpu(pixels, rows, first_row, mean, std, {patch_t, patch_h, patch_w}, out, num_threads);
      },
      py::arg("pixels"), py::arg("rows"), py::arg("first_row"), py::arg("mean"), py::arg("std"), py::arg("patch_t"), py::arg("patch_h"),
      py::arg("patch_w"), py::arg("out"), py::arg("num_threads"));
  m.def(
      "unpack_patches",
      [](const TensorView& packed, const TensorView& rows, const TensorView& std, int64_t patch_t, int64_t patch_h, int64_t patch_w,
         const TensorView& pixels, int num_threads) {
        py::gil_scoped_release unlocked;
        unpack_patches_cpu(packed, rows, std, {patch_t, patch_h, patch_w}, pixels, num_threads);
      },
      py::arg("packed"), py::arg("rows"), py::arg("std"), py::arg("patch_t"), py::arg("patch_h"), py::arg("patch_w"), py::arg("pixels"),
      py::arg("num_threads"));
}

}  // namespace jepa
