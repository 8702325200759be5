// Loss between predicted tokens and layer-normalised target tokens: interface of the CPU implementation.
#pragma once

#include <cstdint>

#include "jepa/tensor_view.h"

namespace jepa {

// The codes are shared with python/jepa_kernels/ops/jepa_loss.py. With d = prediction - target:
// kAbsolute |d|; kSmooth d^2 / (2 beta) below beta, |d| - beta / 2 above; kSquare factor * d^2; kPower |d|^power / power.
enum class LossKind : int { kAbsolute = 0, kSmooth = 1, kSquare = 2, kPower = 3 };

struct JepaLossOptions {
  LossKind kind = LossKind::kAbsolute;
  double parameter = 1.0;  // beta, factor or power
  bool normalize = true;   // the parameter-free layer norm
  double eps = 1e-5;
  bool affine = false;  // a layer norm with weight and bias ahead of it
  double affine_eps = 1e-6;
  double scale = 1.0;  // of every row, beside its own weight
  int num_threads = 1;
};

// pred (R, D), target (T, D), last strides 1. rows int64 (R,): the target row of each prediction, -1 for padding; undefined: row r is r.
// weights (R,), norm_weight and norm_bias (D,): float32, or float64 where pred or target is; each may be undefined.
// Writes loss (a scalar of that same type) = scale * sum over r of weights[r] * sum over d, where `loss` is defined.
void jepa_loss_forward_cpu(const TensorView& pred, const TensorView& target, const TensorView& rows, const TensorView& weights,
                           const TensorView& norm_weight, const TensorView& norm_bias, const TensorView& loss,
                           const JepaLossOptions& options);

// grad_pred (R, D), contiguous, of pred's dtype = d loss / d pred * grad, a scalar of the loss's dtype. Padding gets zeros.
void jepa_loss_backward_cpu(const TensorView& grad, const TensorView& pred, const TensorView& target, const TensorView& rows,
                            const TensorView& weights, const TensorView& norm_weight, const TensorView& norm_bias,
                            const TensorView& grad_pred, const JepaLossOptions& options);

// Both in one pass: loss as by jepa_loss_forward_cpu, and grad_pred as by jepa_loss_backward_cpu for an incoming gradient of 1, bit for bit.
void jepa_loss_fit_cpu(const TensorView& pred, const TensorView& target, const TensorView& rows, const TensorView& weights,
                       const TensorView& norm_weight, const TensorView& norm_bias, const TensorView& loss, const TensorView& grad_pred,
                       const JepaLossOptions& options);

}  // namespace jepa
