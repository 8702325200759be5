// The EMA update on CPUs: checks, shares of many tensors spread over threads, dispatch by instruction set.
#include <string>
#include <utility>

#include "ema_update_kernel.h"
#include "jepa/isa.h"
#include "jepa/parallel.h"
#include "jepa/tensor_view.h"
#include "work_items.h"

namespace jepa {

void ema_update_chunk_avx2(const EmaTensor&, int64_t, int64_t, const EmaCpuStep&);
void ema_update_chunk_avx512(const EmaTensor&, int64_t, int64_t, const EmaCpuStep&);

namespace {

using ChunkKernel = void (*)(const EmaTensor&, int64_t, int64_t, const EmaCpuStep&);

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
  check_alignment(t.target, t.target_dtype, where);
  check_alignment(t.online, t.online_dtype, where);
  if (t.shadow != nullptr && t.shadow_dtype != DType::kBFloat16 && t.shadow_dtype != DType::kFloat16)
    fail(where + "shadow dtype " + name_of(t.shadow_dtype) + " is neither bfloat16 nor float16");
  check_alignment(t.shadow, t.shadow == nullptr ? DType::kUInt8 : t.shadow_dtype, where);
}

}  // namespace

EmaTensors::EmaTensors(std::vector<EmaTensor> tensors) : tensors_(std::move(tensors)), items_(new WorkItems) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    check(tensors_[i]);
    items_->add(i, tensors_[i].numel);
  }
}

EmaTensors::~EmaTensors() = default;

void EmaTensors::update(double weight, bool stochastic_rounding, uint64_t seed, int num_threads) const {
  const ChunkKernel kernel = chunk_kernel();
  const EmaCpuStep step{weight, stochastic_rounding, seed, 12 * items_->elements() > kStreamBytes};
  parallel_for(items_->count(), items_->threads(num_threads), [&](int64_t item) {
    for (const Chunk* c = items_->begin(item); c != items_->end(item); ++c)
      kernel(tensors_[c->tensor], c->begin, c->end, step);
  });
}

}  // namespace jepa
