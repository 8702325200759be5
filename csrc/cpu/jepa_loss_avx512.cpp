// The JEPA loss's inner loops for AVX-512.
#include "jepa_loss_kernel.h"

namespace jepa {

double jepa_loss_rows_avx512(const JepaLossTask& task, int64_t begin, int64_t end, void* room) { return float_rows(task, begin, end, room); }

}  // namespace jepa
