// SIGReg's inner loops for AVX2 with FMA.
#include "sigreg_kernel.h"

namespace jepa {

void sigreg_slices_avx2(const SigregTask& task, int64_t begin, int64_t end, double* room) { float_slices(task, begin, end, room); }

}  // namespace jepa
