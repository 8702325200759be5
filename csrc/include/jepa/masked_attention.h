// softmax(scale * rope(q) rope(k)^T + mask) v and its gradients: interface of the CPU implementation.
#pragma once

#include "jepa/tensor_view.h"

namespace jepa {

// What forward and backward share. Absent tensors are undefined views; at most one kind of mask is present.
struct MaskedAttentionOptions {
  TensorView bool_mask;    // (B, H, Nq, Nk), true = attend
  TensorView key_lengths;  // int32 (B,)
  TensorView cu_seqlens;   // int32 (S + 1,): B == 1 and the token axis is the concatenation of S sequences
  int64_t max_seqlen = 0;
  int64_t tokens_per_frame = 0;  // 0: not frame-causal
  int64_t query_frame_offset = 0;
  TensorView q_cos, q_sin, k_cos, k_sin;  // float32 (1 or B, N, D); y[c] = x[c] * cos[c] + x[c ^ 1] * sin[c]
  double scale = 1.0;
  int num_threads = 1;
};

// q (B, H, Nq, D), k and v (B, H, Nk, D), out like q; lse float32 (B, H, Nq), natural logarithm. Last strides are 1, lse's is free.
void masked_attention_forward_cpu(const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& out,
                                  const TensorView& lse, const MaskedAttentionOptions& options);

void masked_attention_backward_cpu(const TensorView& dout, const TensorView& q, const TensorView& k, const TensorView& v,
                                   const TensorView& out, const TensorView& lse, const TensorView& dq, const TensorView& dk,
                                   const TensorView& dv, const MaskedAttentionOptions& options);

}  // namespace jepa
