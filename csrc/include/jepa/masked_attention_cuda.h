// softmax(scale * rope(q) rope(k)^T + mask) v on GPUs: interface of the forward in CUDA C++.
#pragma once

#include <cstdint>

#include "jepa/float_types.h"
#include "jepa/tensor_view.h"

namespace jepa {

// Rows of channels, (B, H, N, D) by strides in elements; channels are adjacent and every row starts at a multiple of 16 bytes.
struct HeadRows {
  void* data;
  int64_t batch_stride, head_stride, row_stride;
};

// y[c] = x[c] cos[c] + x[c ^ 1] sin[c] with float32 rows (1 or B, N, D); cos is null where nothing is rotated.
struct RotationTables {
  const float* cos;
  const float* sin;
  int64_t batch_stride;
};

struct MaskedAttentionCall {
  HeadRows q, k, v, out;  // k is rotated already, q is rotated as it is loaded
  float* lse;             // (B, H, Nq)
  RotationTables query_tables;
  const int32_t* key_lengths;  // (B,), or null
  const int32_t* cu_seqlens;   // (num_sequences + 1,) with a batch of 1, or null
  DType dtype;                 // bfloat16 or float16
  int batch, heads, query_len, key_len, head_dim;
  int num_sequences, max_seqlen;  // with cu_seqlens
  int tokens_per_frame;           // 0: not frame-causal
  int query_frame_offset;
  float scale_log2;                 // |scale| log2(e), above 0
  uint32_t query_keep, query_flip;  // bits of a pair of query values that stay, and that are inverted: the scale's sign
};

// The scale's size goes into the exponents, its sign, or 0, into the queries' bits, so that the largest score has the largest weight.
inline void set_scale(MaskedAttentionCall& call, double scale) {
  call.scale_log2 = static_cast<float>((scale < 0 ? -scale : scale) * 1.4426950408889634);
  call.query_keep = 0xffffffffu, call.query_flip = scale < 0 ? 0x80008000u : 0;
  if (call.scale_log2 == 0.0f) call.scale_log2 = 1.0f, call.query_keep = call.query_flip = 0;
}

struct RotateKeysCall {
  HeadRows keys, out;
  RotationTables tables;
  DType dtype;
  int batch, heads, key_len, head_dim;
};

// Which kernel runs: tensor-core instructions of a warp (compute capability 8.0 and later), or of a warpgroup (9.0 alone).
enum class AttentionPath : int { kWarp = 0, kWarpgroup = 1 };

bool masked_attention_has_head_dim(int head_dim);
void rotate_keys_cuda(const RotateKeysCall& call, void* stream);
void masked_attention_forward_cuda(const MaskedAttentionCall& call, AttentionPath path, void* stream);

}  // namespace jepa
