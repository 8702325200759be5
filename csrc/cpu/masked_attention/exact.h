// The path for heads with NaN or infinities under a mask that differs from query to query. In a matrix product 0 * NaN is NaN, so the
// fast kernels would carry a masked value into the result; here a masked pair is never touched.
#pragma once

#include "problem.h"

namespace jepa {

// Whether q, k, v and dout hold only finite numbers. (The forward looks at v alone, while it packs it: there a masked score is
// replaced whatever it is, and only the product with v could let a masked NaN in.)
bool backward_inputs_are_finite(const AttentionProblem& p, DType dtype);

void attention_forward_exact(const AttentionProblem& p, DType dtype);
void attention_backward_exact(const AttentionProblem& p, DType dtype);

}  // namespace jepa
