// SIGReg's inner loops for AVX-512.
#include "sigreg_kernel.h"

namespace jepa {

SigregKernels sigreg_kernels_avx512(DType dtype) { return float_kernels(dtype); }

}  // namespace jepa
