// AdamW with EMA on CPUs: checks, bias corrections, shares spread over threads, dispatch by instruction set.
#include <string>
#include <utility>

#include "adamw_ema_kernel.h"
#include "jepa/isa.h"
#include "jepa/parallel.h"
#include "jepa/tensor_view.h"
#include "work_items.h"

namespace jepa {

void adamw_ema_chunk_avx2(const AdamWTensor&, int64_t, int64_t, const AdamWCoefficients&);
void adamw_ema_chunk_avx512(const AdamWTensor&, int64_t, int64_t, const AdamWCoefficients&);
double sum_squares_chunk_avx2(const AdamWTensor&, int64_t, int64_t);
double sum_squares_chunk_avx512(const AdamWTensor&, int64_t, int64_t);

namespace {

struct Kernels {
  void (*update)(const AdamWTensor&, int64_t, int64_t, const AdamWCoefficients&);
  double (*sum_squares)(const AdamWTensor&, int64_t, int64_t);
};

Kernels kernels() {
#if defined(JEPA_HAVE_AVX512)
  if (active_isa() >= Isa::kAvx512) return {adamw_ema_chunk_avx512, sum_squares_chunk_avx512};
#endif
#if defined(JEPA_HAVE_AVX2)
  if (active_isa() >= Isa::kAvx2) return {adamw_ema_chunk_avx2, sum_squares_chunk_avx2};
#endif
  return {adamw_chunk, sum_squares_chunk};
}

std::string where(size_t index) { return "adamw_ema: tensor " + std::to_string(index) + ": "; }

void check_grad(size_t index, const void* grad, DType dtype, int64_t numel) {
  if (numel > 0 && grad == nullptr) fail(where(index) + "null gradient");
  if (dtype != DType::kFloat32 && dtype != DType::kBFloat16 && dtype != DType::kFloat16)
    fail(where(index) + "gradient dtype " + name_of(dtype) + " is none of float32, bfloat16, float16");
  check_alignment(grad, dtype, where(index));
}

void check_shadow(size_t index, const void* shadow, DType dtype) {
  if (shadow != nullptr && dtype != DType::kBFloat16 && dtype != DType::kFloat16)
    fail(where(index) + "shadow dtype " + name_of(dtype) + " is neither bfloat16 nor float16");
  check_alignment(shadow, shadow == nullptr ? DType::kUInt8 : dtype, where(index));
}

void check(size_t index, const AdamWTensor& t) {
  if (t.numel < 0) fail(where(index) + "negative element count");
  if (t.step == nullptr) fail(where(index) + "null step");
  if (t.numel > 0 && (t.param == nullptr || t.exp_avg == nullptr || t.exp_avg_sq == nullptr))
    fail(where(index) + "null address");
  if (t.numel > 0 && t.target_shadow != nullptr && t.target == nullptr)
    fail(where(index) + "a target shadow without a target");
  if (t.group < 0) fail(where(index) + "negative group");
  for (const float* data : {t.param, t.exp_avg, t.exp_avg_sq, t.step, t.target}) check_alignment(data, DType::kFloat32, where(index));
  check_grad(index, t.grad, t.grad_dtype, t.numel);
  check_shadow(index, t.param_shadow, t.param_shadow_dtype);
  check_shadow(index, t.target_shadow, t.target_shadow_dtype);
}

AdamWCoefficients coefficients(const AdamWGroup& g, double step, double momentum, double grad_factor, bool stream) {
  AdamWCoefficients c{};
  c.decay = static_cast<float>(1.0 - g.lr * g.weight_decay);
  c.weight1 = static_cast<float>(1.0 - g.beta1);
  c.beta2 = static_cast<float>(g.beta2);
  c.weight2 = static_cast<float>(1.0 - g.beta2);
  c.inverse_correction2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(g.beta2, step)));
  c.eps = static_cast<float>(g.eps);
  c.step_size = static_cast<float>(g.lr / (1.0 - std::pow(g.beta1, step)));
  c.grad_factor = static_cast<float>(grad_factor);
  c.target_weight = static_cast<float>(1.0 - momentum);
  c.stream = stream;
  return c;
}

}  // namespace

AdamWTensors::AdamWTensors(std::vector<AdamWTensor> tensors) : tensors_(std::move(tensors)), items_(new WorkItems) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    check(i, tensors_[i]);
    items_->add(i, tensors_[i].numel);
    bytes_ += tensors_[i].numel * 20;
  }
}

AdamWTensors::~AdamWTensors() = default;

size_t AdamWTensors::size() const { return tensors_.size(); }

void AdamWTensors::set_grad(size_t tensor, const void* grad, DType dtype) {
  if (tensor >= tensors_.size()) fail("adamw_ema: no tensor " + std::to_string(tensor));
  check_grad(tensor, grad, dtype, tensors_[tensor].numel);
  tensors_[tensor].grad = grad;
  tensors_[tensor].grad_dtype = dtype;
}

double AdamWTensors::sum_of_squares(int num_threads) const {
  const auto kernel = kernels().sum_squares;
  std::vector<double> partial(static_cast<size_t>(items_->count()), 0.0);
  parallel_for(items_->count(), items_->threads(num_threads), [&](int64_t item) {
    double sum = 0.0;
    for (const Chunk* c = items_->begin(item); c != items_->end(item); ++c)
      sum += kernel(tensors_[c->tensor], c->begin, c->end);
    partial[static_cast<size_t>(item)] = sum;
  });
  double total = 0.0;
  for (const double value : partial) total += value;
  return total;
}

void AdamWTensors::update(const std::vector<AdamWGroup>& groups, double momentum, double grad_factor, int num_threads) {
  for (size_t i = 0; i < tensors_.size(); ++i)
    if (static_cast<size_t>(tensors_[i].group) >= groups.size())
      fail(where(i) + "no group " + std::to_string(tensors_[i].group));
  const bool stream = bytes_ > kStreamBytes;
  std::vector<AdamWCoefficients> of_tensor;
  of_tensor.reserve(tensors_.size());
  for (const AdamWTensor& t : tensors_) {
    *t.step += 1.0f;
    of_tensor.push_back(coefficients(groups[static_cast<size_t>(t.group)], *t.step, momentum, grad_factor, stream));
  }
  const auto kernel = kernels().update;
  parallel_for(items_->count(), items_->threads(num_threads), [&](int64_t item) {
    for (const Chunk* c = items_->begin(item); c != items_->end(item); ++c)
      kernel(tensors_[c->tensor], c->begin, c->end, of_tensor[c->tensor]);
  });
}

}  // namespace jepa
