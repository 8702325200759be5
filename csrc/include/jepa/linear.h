// Products of a linear layer in bfloat16 on CPUs with AVX512_BF16, its weight converted while it is laid out: interface.
#pragma once

#include <cstdint>

#include "jepa/tensor_view.h"

namespace jepa {

// y = x W^T + b, or its GELU; `pre` is given where the GELU's input is kept. x (M, K) bf16, W (N, K), y (M, N).
void linear_forward_cpu(const TensorView& x, const TensorView& weight, const TensorView& bias, bool gelu, const TensorView& pre,
                        const TensorView& y, int num_threads);
// y = gelu(x W1^T + b1) W2^T + b2, whose hidden values are not kept.
void mlp_forward_cpu(const TensorView& x, const TensorView& weight1, const TensorView& bias1, const TensorView& weight2,
                     const TensorView& bias2, const TensorView& y, int num_threads);
// dx = dy W, times the GELU's derivative at `pre` where that is given. dy (M, N) bf16, W (N, K), dx (M, K).
void linear_input_gradient_cpu(const TensorView& dy, const TensorView& weight, const TensorView& pre, const TensorView& dx,
                               int num_threads);
// dW = dy^T x, and db = the sum of dy's rows in float32 where it is given. dy (M, N), x (M, K) bf16, dW (N, K).
void linear_weight_gradient_cpu(const TensorView& dy, const TensorView& x, const TensorView& dweight, const TensorView& dbias,
                                int num_threads);

}  // namespace jepa
