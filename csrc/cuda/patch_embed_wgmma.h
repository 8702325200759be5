// The warpgroup's product of compute capability 9.0: 64 rows by 256 columns by 16, both operands in shared memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "jepa/float_types.h"

namespace jepa {
namespace {

#define JEPA_SUMS(t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
#define JEPA_SUMS_16(t) JEPA_SUMS(t), JEPA_SUMS(t + 1), JEPA_SUMS(t + 2), JEPA_SUMS(t + 3)
#define JEPA_SUMS_64(t) JEPA_SUMS_16(t), JEPA_SUMS_16(t + 4), JEPA_SUMS_16(t + 8), JEPA_SUMS_16(t + 12)
#define JEPA_WGMMA(type)                                                                                                          \
  asm volatile(                                                                                                                   \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"                                                                               \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {"                                                           \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                    \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                          \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                          \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                                          \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                          \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                                          \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "                              \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"                            \
      "}, %128, %129, p, 1, 1, 0, 0;\n}\n"                                                                                        \
      : JEPA_SUMS_64(0), JEPA_SUMS_64(16)                                                                                         \
      : "l"(left), "l"(right), "r"(accumulate))

// d = left @ right^T, added to d where `accumulate` is not 0: d as tiles of 16 x 8 a warp; both operands are rows of 16 contiguous values.
template <typename Value>
__device__ __forceinline__ void warpgroup_multiply(float (*d)[4], uint64_t left, uint64_t right, int accumulate) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (std::is_same_v<Value, bf16>)
    JEPA_WGMMA("bf16");
  else
    JEPA_WGMMA("f16");
#endif
}

#undef JEPA_WGMMA
#undef JEPA_SUMS_64
#undef JEPA_SUMS_16
#undef JEPA_SUMS

}  // namespace
}  // namespace jepa
