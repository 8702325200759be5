// What a kernel knows of a tensor: address, element type, sizes and strides. No torch header is needed to describe one.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace jepa {

// The codes are shared with python/jepa_kernels/_native.py.
enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3, kUInt8 = 4, kInt64 = 5, kInt32 = 6, kBool = 7 };

inline int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    case DType::kUInt8:
    case DType::kBool:
      return 1;
  }
  throw std::invalid_argument("unknown dtype code " + std::to_string(static_cast<int>(dtype)));
}

inline const char* name_of(DType dtype) {
  static const char* const kNames[] = {"float32", "float64", "bfloat16", "float16", "uint8", "int64", "int32", "bool"};
  const int code = static_cast<int>(dtype);
  return code >= 0 && code < 8 ? kNames[code] : "unknown";
}

constexpr int kMaxDims = 6;

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int ndim = 0;
  int64_t sizes[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};  // in elements
  int64_t storage_bytes = 0;       // bytes from `data` to the end of its allocation

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  bool defined() const { return data != nullptr || ndim > 0; }

  int64_t numel() const {
    int64_t count = 1;
    for (int d = 0; d < ndim; ++d) count *= sizes[d];
    return count;
  }

  // Strides that would address this shape row-major.
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int d = ndim - 1; d >= 0; --d) {
      if (sizes[d] != 1 && strides[d] != expected) return false;
      expected *= sizes[d];
    }
    return true;
  }
};

[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

// The second validation of a raw pointer (the first is in jepa_kernels.functional): every element that the sizes and strides
// can address lies inside the allocation, and the address suits the element type.
inline void check_alignment(const void* data, DType dtype, const std::string& where) {
  const int64_t item = item_size(dtype);
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(item) != 0)
    fail(where + "address is not aligned to " + std::to_string(item) + " bytes");
}

inline void check_view(const TensorView& view, const char* name) {
  const int64_t item = item_size(view.dtype);
  if (view.ndim < 0 || view.ndim > kMaxDims) fail(std::string(name) + ": " + std::to_string(view.ndim) + " dimensions");
  int64_t last = 0;
  for (int d = 0; d < view.ndim; ++d) {
    if (view.sizes[d] < 0) fail(std::string(name) + ": negative size in dimension " + std::to_string(d));
    if (view.sizes[d] == 0) return;  // nothing is ever addressed
    if (view.strides[d] < 0) fail(std::string(name) + ": negative stride in dimension " + std::to_string(d));
    last += (view.sizes[d] - 1) * view.strides[d];
  }
  if (view.data == nullptr) fail(std::string(name) + ": null address");
  check_alignment(view.data, view.dtype, std::string(name) + ": ");
  if ((last + 1) * item > view.storage_bytes)
    fail(std::string(name) + ": sizes and strides reach " + std::to_string((last + 1) * item) + " bytes, its storage holds " +
         std::to_string(view.storage_bytes));
}

inline void check_dtype(const TensorView& view, DType expected, const char* name) {
  if (view.dtype != expected)
    fail(std::string(name) + ": expected " + name_of(expected) + ", got " + name_of(view.dtype));
}

inline void check_ndim(const TensorView& view, int expected, const char* name) {
  if (view.ndim != expected)
    fail(std::string(name) + ": expected " + std::to_string(expected) + " dimensions, got " + std::to_string(view.ndim));
}

inline void check_size(const TensorView& view, int dim, int64_t expected, const char* name) {
  if (view.sizes[dim] != expected)
    fail(std::string(name) + ": expected size " + std::to_string(expected) + " in dimension " + std::to_string(dim) + ", got " +
         std::to_string(view.sizes[dim]));
}

}  // namespace jepa
