// One attention problem (one batch entry or sequence, one head) as the kernels see it, and the table of functions of one ISA.
#pragma once

#include <cstdint>

#include "jepa/tensor_view.h"

namespace jepa {

constexpr int kMaxHeadDim = 256;

struct Rows {
  char* data = nullptr;
  int64_t stride = 0;  // in elements
};

struct AttentionProblem {
  int64_t queries = 0;
  int64_t keys = 0;      // keys that may be visible: the rest is never read
  int64_t key_rows = 0;  // rows of dk and dv
  int dim = 0;
  float scale = 1.0f;
  Rows q, k, v, out, dout, dq, dk, dv;
  float* lse = nullptr;
  int64_t lse_stride = 1;
  const float *q_cos = nullptr, *q_sin = nullptr, *k_cos = nullptr, *k_sin = nullptr;
  int64_t q_cos_stride = 0, q_sin_stride = 0, k_cos_stride = 0, k_sin_stride = 0;
  const uint8_t* mask = nullptr;
  int64_t mask_row = 0, mask_column = 0;
  int64_t tokens_per_frame = 0, query_frame_offset = 0;

  // Whether some keys are seen by some queries only.
  bool is_masked() const { return mask != nullptr || tokens_per_frame != 0; }

  // Number of leading keys that query `row` may see. With a bool mask, the mask decides further.
  int64_t key_limit(int64_t row) const {
    if (tokens_per_frame == 0) return keys;
    const int64_t frame = query_frame_offset + row / tokens_per_frame;
    if (frame < 0) return 0;
    if (frame >= keys / tokens_per_frame) return keys;
    return (frame + 1) * tokens_per_frame;
  }
};

// Keys are packed and gradients are accumulated in blocks of this many: a multiple of every kernel's row count.
constexpr int64_t kKeyBlock = 96;

// Everything is plain buffers of the sizes that the table gives, so that no ISA-specific file instantiates a container.
struct AttentionKernels {
  int64_t (*query_blocks)(const AttentionProblem&);

  int64_t (*forward_packed_bytes)(const AttentionProblem&);
  int64_t (*forward_scratch_bytes)(const AttentionProblem&);
  // False where a mask is set that differs between queries, and v is not finite: this problem needs the exact path.
  bool (*forward_pack)(const AttentionProblem&, char* packed, int64_t key_begin, int64_t key_end);
  void (*forward_block)(const AttentionProblem&, const char* packed, int64_t block, char* scratch);

  int64_t (*backward_packed_bytes)(const AttentionProblem&);
  int64_t (*backward_scratch_bytes)(const AttentionProblem&);
  int64_t (*query_gradient_bytes)(const AttentionProblem&);  // float32 accumulator of dq, one a split
  void (*backward_pack_keys)(const AttentionProblem&, char* packed, int64_t key_begin, int64_t key_end, char* scratch);
  void (*backward_pack_queries)(const AttentionProblem&, char* packed, int64_t block, char* scratch);
  void (*backward_keys)(const AttentionProblem&, const char* packed, int64_t key_begin, int64_t key_end, char* query_gradient,
                        char* scratch);
  // Sums the splits in order and writes dq.
  void (*backward_finish)(const AttentionProblem&, const char* query_gradients, int splits, int64_t block, char* scratch);
};

}  // namespace jepa
