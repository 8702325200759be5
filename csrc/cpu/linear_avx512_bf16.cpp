// Products of the linear layer for AVX512_BF16.
#include "linear_tiles.h"

namespace jepa {

LinearKernels linear_kernels_avx512_bf16() { return {run_chunk, pack_left}; }

}  // namespace jepa
