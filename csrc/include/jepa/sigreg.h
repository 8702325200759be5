// Sums of cos(t x) and sin(t x) over samples at equally spaced points t, and their gradient: interface of the CPU implementation.
#pragma once

#include "jepa/tensor_view.h"

namespace jepa {

// projected (V, N, K), contiguous; sums (V, 2, T, K), float32 (float64 for float64 projected), contiguous or a block of the last axis of a
// contiguous tensor: at [v, 0, j, k] the sum over n of cos(j * step * projected[v, n, k]), at [v, 1, j, k] that of the sine. step is
// float32's rounding of it for float32 sums.
void sigreg_forward_cpu(const TensorView& projected, const TensorView& sums, double step, int num_threads);

// Overwrites `projected` by its gradient, from that of the sums.
void sigreg_backward_cpu(const TensorView& grad_sums, const TensorView& projected, double step, int num_threads);

}  // namespace jepa
