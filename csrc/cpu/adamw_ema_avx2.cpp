// The inner loops of AdamW with EMA for AVX2 with FMA.
#include "adamw_ema_kernel.h"

namespace jepa {

void adamw_ema_chunk_avx2(const AdamWTensor& t, int64_t begin, int64_t end, const AdamWCoefficients& c) {
  adamw_chunk(t, begin, end, c);
}

double sum_squares_chunk_avx2(const AdamWTensor& t, int64_t begin, int64_t end) {
  return sum_squares_chunk(t, begin, end);
}

}  // namespace jepa
