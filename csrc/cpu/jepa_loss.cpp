// The JEPA loss on CPUs: checks, fixed chunks of rows spread over threads, dispatch by instruction set.
#include "jepa/jepa_loss.h"

#include <algorithm>
#include <string>
#include <vector>

#include "fresh_memory.h"
#include "jepa/isa.h"
#include "jepa/parallel.h"
#include "jepa_loss_kernel.h"

namespace jepa {

double jepa_loss_rows_avx2(const JepaLossTask&, int64_t, int64_t, void*);
double jepa_loss_rows_avx512(const JepaLossTask&, int64_t, int64_t, void*);

namespace {

// Rows whose losses add up to one partial sum: fixed, so that the sum does not depend on the number of threads.
constexpr int64_t kChunk = 32;

using RowsKernel = double (*)(const JepaLossTask&, int64_t, int64_t, void*);

// Tensors of float64, alone or beside other types, are computed in float64.
template <typename Pred>
double dispatch_double_target(const JepaLossTask& task, int64_t begin, int64_t end, double* x) {
  if (task.target_dtype == DType::kFloat64) return dispatch_kind<DoubleLanes, Pred, double>(task, begin, end, x);
  return dispatch_target<DoubleLanes, Pred>(task, begin, end, x);
}

double double_rows(const JepaLossTask& task, int64_t begin, int64_t end, void* room) {
  double* x = static_cast<double*>(room);
  switch (task.pred_dtype) {
    case DType::kFloat64:
      return dispatch_double_target<double>(task, begin, end, x);
    case DType::kBFloat16:
      return dispatch_double_target<bf16>(task, begin, end, x);
    case DType::kFloat16:
      return dispatch_double_target<fp16>(task, begin, end, x);
    default:
      return dispatch_double_target<float>(task, begin, end, x);
  }
}

bool in_double(const JepaLossTask& task) { return task.pred_dtype == DType::kFloat64 || task.target_dtype == DType::kFloat64; }

RowsKernel rows_kernel(const JepaLossTask& task) {
  if (in_double(task)) return double_rows;
#if defined(JEPA_HAVE_AVX512)
  if (active_isa() >= Isa::kAvx512) return jepa_loss_rows_avx512;
#endif
#if defined(JEPA_HAVE_AVX2)
  if (active_isa() >= Isa::kAvx2) return jepa_loss_rows_avx2;
#endif
  return float_rows;
}

void check_matrix(const TensorView& view, const char* name) {
  check_view(view, name);
  check_ndim(view, 2, name);
  if (view.dtype != DType::kFloat32 && view.dtype != DType::kFloat64 && view.dtype != DType::kBFloat16 && view.dtype != DType::kFloat16)
    fail(std::string(name) + ": " + name_of(view.dtype) + " is not a floating type");
  if (view.sizes[1] > 1 && view.strides[1] != 1) fail(std::string(name) + ": the last dimension must have stride 1");
}

const void* checked_vector(const TensorView& view, int64_t size, DType dtype, const char* name) {
  if (!view.defined()) return nullptr;
  check_view(view, name);
  check_ndim(view, 1, name);
  check_size(view, 0, size, name);
  check_dtype(view, dtype, name);
  if (!view.is_contiguous()) fail(std::string(name) + ": must be contiguous");
  return view.data;
}

JepaLossTask checked_task(const TensorView& pred, const TensorView& target, const TensorView& rows, const TensorView& weights,
                          const TensorView& norm_weight, const TensorView& norm_bias, const JepaLossOptions& options) {
  check_matrix(pred, "jepa_loss: pred");
  check_matrix(target, "jepa_loss: target");
  check_size(target, 1, pred.sizes[1], "jepa_loss: target");
  JepaLossTask task{};
  task.pred = pred.data;
  task.target = target.data;
  task.pred_dtype = pred.dtype;
  task.target_dtype = target.dtype;
  task.pred_stride = pred.strides[0];
  task.target_stride = target.strides[0];
  task.width = pred.sizes[1];
  task.options = options;
  const DType exact = in_double(task) ? DType::kFloat64 : DType::kFloat32;
  task.rows = static_cast<const int64_t*>(checked_vector(rows, pred.sizes[0], DType::kInt64, "jepa_loss: rows"));
  task.weights = checked_vector(weights, pred.sizes[0], exact, "jepa_loss: weights");
  task.norm_weight = checked_vector(norm_weight, task.width, exact, "jepa_loss: norm_weight");
  task.norm_bias = checked_vector(norm_bias, task.width, exact, "jepa_loss: norm_bias");
  if (!rows.defined()) check_size(target, 0, pred.sizes[0], "jepa_loss: target");
  if (task.rows != nullptr)
    for (int64_t r = 0; r < pred.sizes[0]; ++r)
      if (task.rows[r] < -1 || task.rows[r] >= target.sizes[0])
        fail("jepa_loss: row " + std::to_string(task.rows[r]) + " is outside the target's " + std::to_string(target.sizes[0]) + " rows");
  return task;
}

double* scalar_double(const TensorView& view) { return view.dtype == DType::kFloat64 ? view.as<double>() : nullptr; }

void check_scalar(const TensorView& view, const JepaLossTask& task, const char* name) {
  check_view(view, name);
  check_dtype(view, in_double(task) ? DType::kFloat64 : DType::kFloat32, name);
  if (view.numel() != 1) fail(std::string(name) + ": must hold one element");
}

// Has the gradients for an incoming gradient of `factor` written to grad_pred.
void want_gradient(const TensorView& grad_pred, const TensorView& pred, double factor, JepaLossTask* task) {
  check_matrix(grad_pred, "jepa_loss: grad_pred");
  check_dtype(grad_pred, pred.dtype, "jepa_loss: grad_pred");
  check_size(grad_pred, 0, pred.sizes[0], "jepa_loss: grad_pred");
  check_size(grad_pred, 1, pred.sizes[1], "jepa_loss: grad_pred");
  if (!grad_pred.is_contiguous()) fail("jepa_loss: grad_pred must be contiguous");
  task->grad_pred = grad_pred.data;
  task->gradient_factor = task->options.scale * factor;
  ask_for_huge_pages(grad_pred.data, grad_pred.numel() * item_size(grad_pred.dtype));
}

// Runs every chunk of rows and returns the sum of the losses times their scale.
double run_chunks(const JepaLossTask& task, int64_t rows) {
  const RowsKernel kernel = rows_kernel(task);
  const int64_t chunks = (rows + kChunk - 1) / kChunk;
  std::vector<double> partial(static_cast<size_t>(chunks), 0.0);
  parallel_for(chunks, task.options.num_threads, [&](int64_t c) {
    static thread_local std::vector<double> room;  // one row; kept from chunk to chunk
    if (room.size() < static_cast<size_t>(task.width)) room.resize(static_cast<size_t>(task.width));
    partial[static_cast<size_t>(c)] = kernel(task, c * kChunk, std::min((c + 1) * kChunk, rows), room.data());
  });
  double total = 0;
  for (const double part : partial) total += part;
  return total * task.options.scale;
}

void write_scalar(double value, const TensorView& view) {
  if (double* exact = scalar_double(view))
    *exact = value;
  else
    *view.as<float>() = static_cast<float>(value);
}

}  // namespace

void jepa_loss_forward_cpu(const TensorView& pred, const TensorView& target, const TensorView& rows, const TensorView& weights,
                           const TensorView& norm_weight, const TensorView& norm_bias, const TensorView& loss,
                           const JepaLossOptions& options) {
  JepaLossTask task = checked_task(pred, target, rows, weights, norm_weight, norm_bias, options);
  check_scalar(loss, task, "jepa_loss: loss");
  task.wants_loss = true;
  write_scalar(run_chunks(task, pred.sizes[0]), loss);
}

void jepa_loss_backward_cpu(const TensorView& grad, const TensorView& pred, const TensorView& target, const TensorView& rows,
                            const TensorView& weights, const TensorView& norm_weight, const TensorView& norm_bias,
                            const TensorView& grad_pred, const JepaLossOptions& options) {
  JepaLossTask task = checked_task(pred, target, rows, weights, norm_weight, norm_bias, options);
  check_scalar(grad, task, "jepa_loss: grad");
  const double* exact = scalar_double(grad);
  want_gradient(grad_pred, pred, exact != nullptr ? *exact : static_cast<double>(*grad.as<float>()), &task);
  if (pred.numel() != 0) run_chunks(task, pred.sizes[0]);
}

void jepa_loss_fit_cpu(const TensorView& pred, const TensorView& target, const TensorView& rows, const TensorView& weights,
                       const TensorView& norm_weight, const TensorView& norm_bias, const TensorView& loss, const TensorView& grad_pred,
                       const JepaLossOptions& options) {
  JepaLossTask task = checked_task(pred, target, rows, weights, norm_weight, norm_bias, options);
  check_scalar(loss, task, "jepa_loss: loss");
  task.wants_loss = true;
  want_gradient(grad_pred, pred, 1.0, &task);
  write_scalar(run_chunks(task, pred.sizes[0]), loss);
}

}  // namespace jepa
