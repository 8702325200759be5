// Sums of cos(t x) and sin(t x) over projected samples at equally spaced points t, and their gradient: interface of the CPU implementation.
#pragma once

#include "jepa/tensor_view.h"

namespace jepa {

// x (V, N, D) and directions (D, K) of one type; sums (V, 2, T, K), float32 (float64 for float64); all contiguous. With z = x @ directions,
// rounded to x's type, at [v, 0, j, k] the sum over n of cos(j * step * z[v, n, k]), at [v, 1, j, k] that of the sine. step is float32's
// rounding of it for float32 sums.
void sigreg_forward_cpu(const TensorView& x, const TensorView& directions, const TensorView& sums, double step, int num_threads);

// grad_x, like x, from grad_sums, like sums.
void sigreg_backward_cpu(const TensorView& grad_sums, const TensorView& x, const TensorView& directions, const TensorView& grad_x,
                         double step, int num_threads);

// The mean over V and K of N * sum over j of weights[j] * ((mean cosine - phi[j])^2 + (mean sine)^2), and its gradient with respect to x in
// grad_x, which has x's shape and the type of the sums; phi and weights (T,) of that type.
double sigreg_fit_cpu(const TensorView& x, const TensorView& directions, const TensorView& phi, const TensorView& weights,
                      const TensorView& grad_x, double step, int num_threads);

}  // namespace jepa
