// How Python hands a tensor over: the tuple (address, dtype code, sizes, strides, storage bytes) that _native.view builds, or None.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "jepa/tensor_view.h"

namespace pybind11 {
namespace detail {

template <>
struct type_caster<jepa::TensorView> {
  PYBIND11_TYPE_CASTER(jepa::TensorView, const_name("tuple[int, int, tuple[int, ...], tuple[int, ...], int] | None"));

  bool load(handle source, bool) {
    value = jepa::TensorView{};
    if (source.is_none()) return true;
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 5) return false;
    const tuple fields = reinterpret_borrow<tuple>(source);
    const tuple sizes = reinterpret_borrow<tuple>(fields[2]), strides = reinterpret_borrow<tuple>(fields[3]);
    if (sizes.size() != strides.size() || sizes.size() > static_cast<size_t>(jepa::kMaxDims)) return false;
    value.data = reinterpret_cast<void*>(fields[0].cast<uintptr_t>());
    value.dtype = static_cast<jepa::DType>(fields[1].cast<int>());
    value.ndim = static_cast<int>(sizes.size());
    for (size_t d = 0; d < sizes.size(); ++d) {
      value.sizes[d] = sizes[d].cast<int64_t>();
      value.strides[d] = strides[d].cast<int64_t>();
    }
    value.storage_bytes = fields[4].cast<int64_t>();
    return true;
  }
};

}  // namespace detail
}  // namespace pybind11
