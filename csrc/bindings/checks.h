// Checks that bindings share.
#pragma once

#include <initializer_list>
#include <string>

#include "jepa/tensor_view.h"

namespace jepa {

// A contiguous tensor of exactly this type and these sizes.
inline void check_contiguous(const TensorView& view, DType dtype, std::initializer_list<int64_t> sizes, const char* op, const char* name) {
  check_view(view, name);
  check_dtype(view, dtype, name);
  check_ndim(view, static_cast<int>(sizes.size()), name);
  int dim = 0;
  for (const int64_t size : sizes) check_size(view, dim++, size, name);
  if (!view.is_contiguous()) fail(std::string(op) + ": " + name + " must be contiguous");
}

}  // namespace jepa
