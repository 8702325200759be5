// SIGReg's inner loops for AVX2.
#include "sigreg_kernel.h"

namespace jepa {

SigregKernels sigreg_kernels_avx2(DType dtype) { return float_kernels(dtype); }

}  // namespace jepa
