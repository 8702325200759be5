// SIGReg's inner loops for AVX-512.
#include "sigreg_kernel.h"

namespace jepa {

void sigreg_slices_avx512(const SigregTask& task, int64_t begin, int64_t end, double* room) { float_slices(task, begin, end, room); }

}  // namespace jepa
