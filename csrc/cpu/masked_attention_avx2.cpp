// Masked attention for AVX2, computing in float32.
#include "masked_attention/kernels.h"

namespace jepa {

AttentionKernels attention_kernels_avx2(DType dtype) { return float_attention_kernels<Avx2>(dtype); }

}  // namespace jepa
