// Masked attention for AVX512_BF16: bfloat16 tensors, products by vdpbf16ps.
#include "masked_attention/kernels.h"

namespace jepa {

AttentionKernels attention_kernels_avx512_bf16() { return attention_kernels_of<Avx512Bf16, bf16>(); }

}  // namespace jepa
