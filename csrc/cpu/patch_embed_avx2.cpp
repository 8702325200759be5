// Patch packing and unpacking for AVX2.
#include "patch_embed_kernel.h"

namespace jepa {

void pack_rows_avx2(const PackTask& task, int64_t begin, int64_t end) { pack_rows(task, begin, end); }

void unpack_patches_avx2(const UnpackTask& task, int64_t begin, int64_t end) { unpack_patches(task, begin, end); }

}  // namespace jepa
