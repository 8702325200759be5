// The warpgroup's product of compute capability 9.0 with its left operand in registers: 64 rows by 16, 32, 64, 96 or 128 columns by 16.
#pragma once

#include <cstdint>
#include <type_traits>

#include "jepa/float_types.h"

namespace jepa {
namespace {

#define JEPA_SUMS(t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
#define JEPA_SUMS_16(t) JEPA_SUMS(t), JEPA_SUMS(t + 1)
#define JEPA_SUMS_32(t) JEPA_SUMS_16(t), JEPA_SUMS_16(t + 2)
#define JEPA_SUMS_64(t) JEPA_SUMS_32(t), JEPA_SUMS_32(t + 4)
#define JEPA_SUMS_96(t) JEPA_SUMS_64(t), JEPA_SUMS_32(t + 8)
#define JEPA_SUMS_128(t) JEPA_SUMS_64(t), JEPA_SUMS_64(t + 8)
#define JEPA_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define JEPA_NAMES_32 JEPA_NAMES_16 ", " "%8, %9, %10, %11, %12, %13, %14, %15"
#define JEPA_NAMES_64 JEPA_NAMES_32 ", " "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define JEPA_NAMES_96 JEPA_NAMES_64 ", " "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define JEPA_NAMES_128 JEPA_NAMES_96 ", " "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define JEPA_FLAG_16 "%13"
#define JEPA_INPUTS_16 "{%8, %9, %10, %11}, %12, add, 1, 1, %14"
#define JEPA_FLAG_32 "%21"
#define JEPA_INPUTS_32 "{%16, %17, %18, %19}, %20, add, 1, 1, %22"
#define JEPA_FLAG_64 "%37"
#define JEPA_INPUTS_64 "{%32, %33, %34, %35}, %36, add, 1, 1, %38"
#define JEPA_FLAG_96 "%53"
#define JEPA_INPUTS_96 "{%48, %49, %50, %51}, %52, add, 1, 1, %54"
#define JEPA_FLAG_128 "%69"
#define JEPA_INPUTS_128 "{%64, %65, %66, %67}, %68, add, 1, 1, %70"
#define JEPA_WGMMA(n, type)                                                                                         \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " JEPA_FLAG_##n ", 0;\n"                                      \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" JEPA_NAMES_##n "}, " JEPA_INPUTS_##n \
               ";\n}\n"                                                                                            \
               : JEPA_SUMS_##n(0)                                                                                   \
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "r"(static_cast<int>(add)),    \
                 "n"(static_cast<int>(kTransposed)))
#define JEPA_WGMMA_OF(n)                        \
  do {                                          \
    if constexpr (std::is_same_v<Value, bf16>)  \
      JEPA_WGMMA(n, "bf16");                    \
    else                                        \
      JEPA_WGMMA(n, "f16");                     \
  } while (false)

// d (+)= left @ right, added where `add`: d [64, kColumns] as tiles of 16 x 8 a warp, left [64, 16] as four registers a thread, right by
// its descriptor, [kColumns, 16] with 16 contiguous values or, transposed, [16, kColumns] with kColumns contiguous ones.
template <typename Value, int kColumns, bool kTransposed>
__device__ __forceinline__ void warpgroup_multiply_rows(float (*d)[4], const uint32_t (&left)[4], uint64_t right, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static_assert(kColumns == 16 || kColumns == 32 || kColumns == 64 || kColumns == 96 || kColumns == 128, "a product that is written down here");
  if constexpr (kColumns == 16)
    JEPA_WGMMA_OF(16);
  else if constexpr (kColumns == 32)
    JEPA_WGMMA_OF(32);
  else if constexpr (kColumns == 64)
    JEPA_WGMMA_OF(64);
  else if constexpr (kColumns == 96)
    JEPA_WGMMA_OF(96);
  else
    JEPA_WGMMA_OF(128);
#endif
}

#undef JEPA_WGMMA_OF
#undef JEPA_WGMMA
#undef JEPA_FLAG_16
#undef JEPA_INPUTS_16
#undef JEPA_NAMES_16
#undef JEPA_SUMS_16
#undef JEPA_FLAG_32
#undef JEPA_INPUTS_32
#undef JEPA_NAMES_32
#undef JEPA_SUMS_32
#undef JEPA_FLAG_64
#undef JEPA_INPUTS_64
#undef JEPA_NAMES_64
#undef JEPA_SUMS_64
#undef JEPA_FLAG_96
#undef JEPA_FLAG_128
#undef JEPA_INPUTS_96
#undef JEPA_INPUTS_128
#undef JEPA_NAMES_96
#undef JEPA_NAMES_128
#undef JEPA_SUMS_96
#undef JEPA_SUMS_128
#undef JEPA_SUMS

}  // namespace
}  // namespace jepa
