// Patch packing for AVX-512 with its bf16 conversion. Unpacking gains nothing from it and stays with AVX-512.
#include "patch_embed_kernel.h"

namespace jepa {

void pack_rows_avx512_bf16(const PackTask& task, int64_t begin, int64_t end) { pack_rows(task, begin, end); }

}  // namespace jepa
