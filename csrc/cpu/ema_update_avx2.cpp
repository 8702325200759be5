// The EMA update's inner loop for AVX2 with FMA.
#include "ema_update_kernel.h"

namespace jepa {

void ema_update_chunk_avx2(const EmaTensor& t, int64_t begin, int64_t end, const EmaCpuStep& step) {
  update_chunk(t, begin, end, step);
}

}  // namespace jepa
