// Python module jepa_kernels._cpu: the native CPU kernels.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <string>

#include "cpu_operators.h"
#include "jepa/isa.h"

namespace py = pybind11;

namespace {

jepa::Isa parse_isa(const std::string& name) {
  for (int level = 0; level <= static_cast<int>(jepa::Isa::kAvx512Bf16); ++level)
    if (name == jepa::name_of(static_cast<jepa::Isa>(level))) return static_cast<jepa::Isa>(level);
  throw py::value_error("unknown instruction set '" + name + "': one of baseline, avx2, avx512, avx512_bf16");
}

// The library whose OpenMP runs our loops. It must be the one torch loaded: two pools of spinning threads slow each
// other down.
std::string openmp_library() {
  Dl_info info{};
  void* symbol = dlsym(RTLD_DEFAULT, "GOMP_parallel");
  return symbol != nullptr && dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Native CPU kernels of jepa_kernels. Tensors come as addresses; jepa_kernels.ops is the public way in.";
  m.def("detected_isa", [] { return std::string(jepa::name_of(jepa::detected_isa())); });
  m.def("active_isa", [] { return std::string(jepa::name_of(jepa::active_isa())); });
  m.def("limit_isa", [](const std::string& name) { jepa::limit_isa(parse_isa(name)); }, py::arg("highest"));
  m.def("openmp_library", &openmp_library);
  jepa::bind_ema_update(m);
  jepa::bind_watch(m);
  jepa::bind_adamw_ema(m);
  jepa::bind_patch_embed(m);
  jepa::bind_masked_attention(m);
  jepa::bind_jepa_loss(m);
  jepa::bind_linear(m);
  jepa::bind_sigreg(m);
}
