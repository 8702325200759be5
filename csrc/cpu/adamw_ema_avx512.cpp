// The inner loops of AdamW with EMA for AVX-512.
#include "adamw_ema_kernel.h"

namespace jepa {

void adamw_ema_chunk_avx512(const AdamWTensor& t, int64_t begin, int64_t end, const AdamWCoefficients& c) {
  adamw_chunk(t, begin, end, c);
}

double sum_squares_chunk_avx512(const AdamWTensor& t, int64_t begin, int64_t end) {
  return sum_squares_chunk(t, begin, end);
}

}  // namespace jepa
