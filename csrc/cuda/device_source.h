// What source is written in that runs on a GPU and, as a test without one, on the host: its instructions come from a Machine, the one of
// device_machine.h or warpgroup_machine.h, or their emulation.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define JEPA_DEVICE __device__ __forceinline__
#define JEPA_UNROLL _Pragma("unroll")
#define JEPA_ROLLED _Pragma("unroll 1")
#else
#define JEPA_DEVICE inline
#define JEPA_UNROLL
#define JEPA_ROLLED
#endif

namespace jepa {
namespace {

// 16 bytes: eight values of 16 bits, or four of 32.
struct alignas(16) Chunk {
  uint32_t word[4];
};

}  // namespace
}  // namespace jepa
