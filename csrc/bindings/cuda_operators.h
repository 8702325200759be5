// One function an operator, each in its own file cuda_<operator>.cpp, that adds the operator to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace jepa {

void bind_adamw_ema_cuda(pybind11::module_& m);
void bind_masked_attention_cuda(pybind11::module_& m);
void bind_patch_embed_cuda(pybind11::module_& m);

}  // namespace jepa
