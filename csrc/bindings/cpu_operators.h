// One function an operator, each in its own file cpu_<operator>.cpp, that adds the operator to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace jepa {

void bind_ema_update(pybind11::module_& m);
void bind_watch(pybind11::module_& m);
void bind_adamw_ema(pybind11::module_& m);
void bind_patch_embed(pybind11::module_& m);
void bind_masked_attention(pybind11::module_& m);
void bind_jepa_loss(pybind11::module_& m);
void bind_linear(pybind11::module_& m);
void bind_sigreg(pybind11::module_& m);

}  // namespace jepa
