// The EMA update's inner loop for AVX-512.
#include "ema_update_kernel.h"

namespace jepa {

void ema_update_chunk_avx512(const EmaTensor& t, int64_t begin, int64_t end, const EmaCpuStep& step) {
  update_chunk(t, begin, end, step);
}

}  // namespace jepa
