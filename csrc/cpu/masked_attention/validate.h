// Checks of the tensors of masked attention, and their division into problems.
#pragma once

#include <vector>

#include "jepa/masked_attention.h"
#include "problem.h"

namespace jepa {

struct AttentionTensors {
  TensorView q, k, v, out, lse, dout, dq, dk, dv;  // the last four only for backward
  bool backward = false;
};

// Throws std::invalid_argument that names the value; returns one problem a batch entry or sequence and head.
std::vector<AttentionProblem> attention_problems(const AttentionTensors& tensors, const MaskedAttentionOptions& options);

}  // namespace jepa
