// The EMA update on CPUs: checks, chunks of many tensors spread over threads, dispatch by instruction set.
#include <algorithm>
#include <string>

#include "ema_update_kernel.h"
#include "jepa/isa.h"
#include "jepa/parallel.h"

namespace jepa {

void ema_update_chunk_avx2(const EmaTensor&, int64_t, int64_t, double, bool, uint64_t);
void ema_update_chunk_avx512(const EmaTensor&, int64_t, int64_t, double, bool, uint64_t);

namespace {

// Small enough that a thread's share of one tensor stays in its L2 and work balances, large enough to hide the loop's overhead.
constexpr int64_t kChunk = 32768;

struct Chunk {
  const EmaTensor* tensor;
  int64_t begin, end;
};

using ChunkKernel = void (*)(const EmaTensor&, int64_t, int64_t, double, bool, uint64_t);

ChunkKernel chunk_kernel() {
#if defined(JEPA_HAVE_AVX512)
  if (active_isa() >= Isa::kAvx512) return ema_update_chunk_avx512;
#endif
#if defined(JEPA_HAVE_AVX2)
  if (active_isa() >= Isa::kAvx2) return ema_update_chunk_avx2;
#endif
  return update_chunk;
}

bool is_floating(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

void check(const EmaTensor& t) {
  const std::string where = "ema_update: tensor " + std::to_string(t.index) + ": ";
  if (t.numel < 0) fail(where + "negative element count");
  if (!is_floating(t.target_dtype)) fail(where + "target dtype " + name_of(t.target_dtype) + " is not floating point");
  if (!is_floating(t.online_dtype)) fail(where + "online dtype " + name_of(t.online_dtype) + " is not floating point");
  if (t.numel > 0 && (t.target == nullptr || t.online == nullptr)) fail(where + "null address");
  if (t.shadow != nullptr && t.shadow_dtype != DType::kBFloat16 && t.shadow_dtype != DType::kFloat16)
    fail(where + "shadow dtype " + name_of(t.shadow_dtype) + " is neither bfloat16 nor float16");
}

}  // namespace

void ema_update_cpu(const std::vector<EmaTensor>& tensors, double weight, bool stochastic_rounding, uint64_t seed, int num_threads) {
  std::vector<Chunk> chunks;
  for (const EmaTensor& t : tensors) {
    check(t);
    for (int64_t begin = 0; begin < t.numel; begin += kChunk)
      chunks.push_back({&t, begin, std::min(begin + kChunk, t.numel)});
  }
  const ChunkKernel kernel = chunk_kernel();
  parallel_for(static_cast<int64_t>(chunks.size()), num_threads, [&](int64_t i) {
    const Chunk& c = chunks[static_cast<size_t>(i)];
    kernel(*c.tensor, c.begin, c.end, weight, stochastic_rounding, seed);
  });
}

}  // namespace jepa
