// Patch packing and unpacking for AVX-512.
#include "patch_embed_kernel.h"

namespace jepa {

void pack_rows_avx512(const PackTask& task, int64_t begin, int64_t end) { pack_rows(task, begin, end); }

void unpack_patches_avx512(const UnpackTask& task, int64_t begin, int64_t end) { unpack_patches(task, begin, end); }

}  // namespace jepa
