// The part of DLPack's C exchange interface (dlpack.h 1.2) that describes a tensor without owning it. torch publishes the table as
// torch.Tensor.__dlpack_c_exchange_api__; reading a tensor through it takes a fifth of the time of its Python attributes.
#pragma once

#include <cstdint>

namespace jepa {

struct DlpackDevice {
  int32_t type, id;
};

struct DlpackType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct DlpackTensor {
  void* data;
  DlpackDevice device;
  int32_t ndim;
  DlpackType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct DlpackExchange {
  uint32_t major, minor;
  void* previous;
  void* managed_tensor_allocator;
  void* managed_tensor_from_object;
  void* managed_tensor_to_object;
  int (*tensor_from_object)(void* object, DlpackTensor* out);  // 0, or -1 with a Python error set
  void* current_stream;
};

constexpr uint32_t kDlpackMajor = 1;

}  // namespace jepa
