// Masked attention for AVX-512, computing in float32.
#include "masked_attention/kernels.h"

namespace jepa {

AttentionKernels attention_kernels_avx512(DType dtype) { return float_attention_kernels<Avx512>(dtype); }

}  // namespace jepa
