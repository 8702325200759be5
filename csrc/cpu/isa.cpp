// Run-time detection of the instruction-set level, and its limit for tests.
#include "jepa/isa.h"

#include <algorithm>
#include <atomic>

namespace jepa {

namespace {

// The best level that the processor has and this build has: JEPA_HAVE_* for each, a level never without those below.
Isa detect() {
#if defined(JEPA_HAVE_AVX2)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!avx2) return Isa::kBaseline;
#if defined(JEPA_HAVE_AVX512)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#if defined(JEPA_HAVE_AVX512_BF16)
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::kAvx512Bf16;
#endif
  if (avx512) return Isa::kAvx512;
#endif
  return Isa::kAvx2;
#else
  return Isa::kBaseline;
#endif
}

std::atomic<int>& limit() {
  static std::atomic<int> value{static_cast<int>(Isa::kAvx512Bf16)};
  return value;
}

}  // namespace

Isa detected_isa() {
  static const Isa isa = detect();
  return isa;
}

Isa active_isa() { return static_cast<Isa>(std::min(static_cast<int>(detected_isa()), limit().load())); }

void limit_isa(Isa highest) { limit().store(static_cast<int>(highest)); }

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

}  // namespace jepa
