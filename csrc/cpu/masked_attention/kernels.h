// Fills the table of one instruction set.
#pragma once

#include "backward.h"

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

template <class A>
int64_t count_query_blocks(const AttentionProblem& p) {
  return query_block_count(Layout<A>(p).vectors);
}
template <class A>
int64_t forward_packed_bytes(const AttentionProblem& p) {
  return ForwardPacked<A>(Layout<A>(p), nullptr).bytes;
}
template <class A>
int64_t forward_scratch_bytes(const AttentionProblem& p) {
  return ForwardScratch<A>(Layout<A>(p), nullptr).bytes;
}
template <class A>
int64_t backward_packed_bytes(const AttentionProblem& p) {
  return BackwardPacked<A>(Layout<A>(p), nullptr).bytes;
}
template <class A>
int64_t backward_scratch_bytes(const AttentionProblem& p) {
  return BackwardScratch<A>(Layout<A>(p), nullptr).bytes;
}
template <class A>
int64_t query_gradient_bytes(const AttentionProblem& p) {
  const Layout<A> layout(p);
  return layout.vectors * A::kLanes * layout.lane_dim * static_cast<int64_t>(sizeof(float));
}

template <class A, typename T>
constexpr AttentionKernels attention_kernels_of() {
  return {count_query_blocks<A>,      forward_packed_bytes<A>,        forward_scratch_bytes<A>, forward_pack<A, T>,
          forward_block<A, T>,        backward_packed_bytes<A>,       backward_scratch_bytes<A>, query_gradient_bytes<A>,
          backward_pack_keys<A, T>,   backward_pack_queries<A, T>,    backward_keys<A, T>,      backward_finish<A, T>};
}

// The table for a tensor type, computing in float32.
template <class A>
AttentionKernels float_attention_kernels(DType dtype) {
  if (dtype == DType::kBFloat16) return attention_kernels_of<A, bf16>();
  if (dtype == DType::kFloat16) return attention_kernels_of<A, fp16>();
  return attention_kernels_of<A, float>();
}

}  // namespace
}  // namespace jepa
