// Checks of masked attention's arguments, and their division into problems of one head each.
#include <cmath>
#include <string>

#include "masked_attention/validate.h"

namespace jepa {

namespace {

std::string text(int64_t value) { return std::to_string(value); }

[[noreturn]] void refuse(const std::string& message) { fail("masked_attention: " + message); }

void check_rows(const TensorView& view, const TensorView& like, int64_t length, const char* name) {
  check_ndim(view, 4, name);
  check_dtype(view, like.dtype, name);
  check_size(view, 0, like.sizes[0], name);
  check_size(view, 1, like.sizes[1], name);
  check_size(view, 2, length, name);
  check_size(view, 3, like.sizes[3], name);
  if (view.sizes[3] > 1 && view.strides[3] != 1)
    refuse(std::string(name) + ": the last stride is " + text(view.strides[3]) + ", it must be 1");
  check_view(view, name);
}

void check_tensors(const AttentionTensors& t) {
  const TensorView& q = t.q;
  check_ndim(q, 4, "q");
  check_ndim(t.k, 4, "k");
  if (q.dtype != DType::kFloat32 && q.dtype != DType::kBFloat16 && q.dtype != DType::kFloat16)
    refuse(std::string("dtype ") + name_of(q.dtype) + ": expected float32, bfloat16 or float16");
  const int64_t dim = q.sizes[3];
  if (dim < 2 || dim > kMaxHeadDim || dim % 2 != 0)
    refuse("head dim " + text(dim) + ": it must be even, from 2 to " + text(kMaxHeadDim));
  const int64_t queries = q.sizes[2], keys = t.k.sizes[2];
  if (queries > INT32_MAX || keys > INT32_MAX) refuse("more than 2^31 - 1 tokens");
  check_rows(q, q, queries, "q");
  check_rows(t.k, q, keys, "k");
  check_rows(t.v, q, keys, "v");
  check_rows(t.out, q, queries, "out");
  check_ndim(t.lse, 3, "lse");
  check_dtype(t.lse, DType::kFloat32, "lse");
  for (int d = 0; d < 3; ++d) check_size(t.lse, d, q.sizes[d], "lse");
  check_view(t.lse, "lse");
  if (!t.backward) return;
  check_rows(t.dout, q, queries, "dout");
  check_rows(t.dq, q, queries, "dq");
  check_rows(t.dk, q, keys, "dk");
  check_rows(t.dv, q, keys, "dv");
}

void check_table(const TensorView& table, const TensorView& rows, const char* name) {
  check_ndim(table, 3, name);
  check_dtype(table, DType::kFloat32, name);
  if (table.sizes[0] != 1) check_size(table, 0, rows.sizes[0], name);
  check_size(table, 1, rows.sizes[2], name);
  check_size(table, 2, rows.sizes[3], name);
  if (table.strides[2] != 1) refuse(std::string(name) + ": the last stride is " + text(table.strides[2]) + ", it must be 1");
  check_view(table, name);
}

void check_tables(const AttentionTensors& t, const MaskedAttentionOptions& o) {
  const int given = o.q_cos.defined() + o.q_sin.defined() + o.k_cos.defined() + o.k_sin.defined();
  if (given == 0) return;
  if (given != 4) refuse("RoPE needs all of q_cos, q_sin, k_cos and k_sin; " + text(given) + " of 4 given");
  check_table(o.q_cos, t.q, "q_cos");
  check_table(o.q_sin, t.q, "q_sin");
  check_table(o.k_cos, t.k, "k_cos");
  check_table(o.k_sin, t.k, "k_sin");
}

void check_lengths(const TensorView& lengths, const TensorView& k) {
  check_ndim(lengths, 1, "key_lengths");
  check_dtype(lengths, DType::kInt32, "key_lengths");
  check_size(lengths, 0, k.sizes[0], "key_lengths");
  check_view(lengths, "key_lengths");
  for (int64_t b = 0; b < k.sizes[0]; ++b) {
    const int64_t length = lengths.as<const int32_t>()[b * lengths.strides[0]];
    if (length < 0 || length > k.sizes[2])
      refuse("key_lengths[" + text(b) + "] is " + text(length) + ", outside 0.." + text(k.sizes[2]));
  }
}

void check_sequences(const AttentionTensors& t, const MaskedAttentionOptions& o) {
  const TensorView& offsets = o.cu_seqlens;
  check_ndim(offsets, 1, "cu_seqlens");
  check_dtype(offsets, DType::kInt32, "cu_seqlens");
  check_view(offsets, "cu_seqlens");
  const int64_t count = offsets.sizes[0], total = t.q.sizes[2];
  if (count < 1) refuse("cu_seqlens is empty: it holds one more entry than there are sequences");
  if (t.q.sizes[0] != 1) refuse("ragged sequences need batch size 1, got " + text(t.q.sizes[0]));
  if (t.k.sizes[2] != total) refuse("ragged sequences need as many keys as queries, got " + text(t.k.sizes[2]) + " and " + text(total));
  const auto at = [&](int64_t i) { return static_cast<int64_t>(offsets.as<const int32_t>()[i * offsets.strides[0]]); };
  if (at(0) != 0) refuse("cu_seqlens[0] is " + text(at(0)) + ", it must be 0");
  for (int64_t i = 1; i < count; ++i) {
    if (at(i) < at(i - 1)) refuse("cu_seqlens[" + text(i) + "] is " + text(at(i)) + ", less than the entry before, " + text(at(i - 1)));
    if (o.max_seqlen > 0 && at(i) - at(i - 1) > o.max_seqlen)
      refuse("sequence " + text(i - 1) + " has " + text(at(i) - at(i - 1)) + " tokens, more than max_seqlen " + text(o.max_seqlen));
  }
  if (at(count - 1) != total) refuse("cu_seqlens ends at " + text(at(count - 1)) + ", the tensors hold " + text(total) + " tokens");
}

void check_masks(const AttentionTensors& t, const MaskedAttentionOptions& o) {
  if (o.tokens_per_frame < 0) refuse("tokens_per_frame is " + text(o.tokens_per_frame) + ", it must be 0 or more");
  const int kinds = o.bool_mask.defined() + o.key_lengths.defined() + o.cu_seqlens.defined() + (o.tokens_per_frame > 0);
  if (kinds > 1) refuse("at most one of bool_mask, key_lengths, cu_seqlens and tokens_per_frame, got " + text(kinds));
  if (o.bool_mask.defined()) {
    check_ndim(o.bool_mask, 4, "bool_mask");
    check_dtype(o.bool_mask, DType::kBool, "bool_mask");
    for (int d = 0; d < 3; ++d) check_size(o.bool_mask, d, t.q.sizes[d], "bool_mask");
    check_size(o.bool_mask, 3, t.k.sizes[2], "bool_mask");
    check_view(o.bool_mask, "bool_mask");
  }
  if (o.key_lengths.defined()) check_lengths(o.key_lengths, t.k);
  if (o.cu_seqlens.defined()) check_sequences(t, o);
  if (o.tokens_per_frame > 0) {
    const int64_t queries = t.q.sizes[2], keys = t.k.sizes[2];
    if (queries % o.tokens_per_frame != 0 || keys % o.tokens_per_frame != 0)
      refuse("tokens_per_frame " + text(o.tokens_per_frame) + " does not divide " + text(queries) + " queries and " + text(keys) + " keys");
  }
}

Rows rows_of(const TensorView& view, int64_t batch, int64_t head, int64_t first) {
  if (!view.defined()) return {};
  const int64_t offset = batch * view.strides[0] + head * view.strides[1] + first * view.strides[2];
  return {static_cast<char*>(view.data) + offset * item_size(view.dtype), view.strides[2]};
}

const float* table_of(const TensorView& table, int64_t batch, int64_t first) {
  if (!table.defined()) return nullptr;
  return table.as<const float>() + (table.sizes[0] == 1 ? 0 : batch * table.strides[0]) + first * table.strides[1];
}

AttentionProblem problem_at(const AttentionTensors& t, const MaskedAttentionOptions& o, int64_t batch, int64_t head, int64_t first,
                            int64_t queries, int64_t keys) {
  AttentionProblem p;
  p.queries = queries;
  p.keys = p.key_rows = keys;
  p.dim = static_cast<int>(t.q.sizes[3]);
  p.scale = static_cast<float>(o.scale);
  p.q = rows_of(t.q, batch, head, first);
  p.k = rows_of(t.k, batch, head, first);
  p.v = rows_of(t.v, batch, head, first);
  p.out = rows_of(t.out, batch, head, first);
  p.dout = rows_of(t.dout, batch, head, first);
  p.dq = rows_of(t.dq, batch, head, first);
  p.dk = rows_of(t.dk, batch, head, first);
  p.dv = rows_of(t.dv, batch, head, first);
  p.lse = t.lse.as<float>() + batch * t.lse.strides[0] + head * t.lse.strides[1] + first * t.lse.strides[2];
  p.lse_stride = t.lse.strides[2];
  p.q_cos = table_of(o.q_cos, batch, first);
  p.q_sin = table_of(o.q_sin, batch, first);
  p.k_cos = table_of(o.k_cos, batch, first);
  p.k_sin = table_of(o.k_sin, batch, first);
  p.q_cos_stride = o.q_cos.strides[1];
  p.q_sin_stride = o.q_sin.strides[1];
  p.k_cos_stride = o.k_cos.strides[1];
  p.k_sin_stride = o.k_sin.strides[1];
  if (o.key_lengths.defined()) p.keys = o.key_lengths.as<const int32_t>()[batch * o.key_lengths.strides[0]];
  if (o.bool_mask.defined()) {
    p.mask = o.bool_mask.as<const uint8_t>() + batch * o.bool_mask.strides[0] + head * o.bool_mask.strides[1];
    p.mask_row = o.bool_mask.strides[2];
    p.mask_column = o.bool_mask.strides[3];
  }
  p.tokens_per_frame = o.tokens_per_frame;
  p.query_frame_offset = o.query_frame_offset;
  return p;
}

}  // namespace

std::vector<AttentionProblem> attention_problems(const AttentionTensors& t, const MaskedAttentionOptions& o) {
  check_tensors(t);
  check_tables(t, o);
  check_masks(t, o);
  if (!std::isfinite(o.scale)) refuse("scale is " + std::to_string(o.scale) + ", it must be finite");
  if (o.num_threads < 1) refuse("num_threads is " + text(o.num_threads) + ", it must be 1 or more");
  std::vector<AttentionProblem> problems;
  const int64_t heads = t.q.sizes[1];
  if (o.cu_seqlens.defined()) {
    const auto at = [&](int64_t i) { return static_cast<int64_t>(o.cu_seqlens.as<const int32_t>()[i * o.cu_seqlens.strides[0]]); };
    for (int64_t sequence = 0; sequence + 1 < o.cu_seqlens.sizes[0]; ++sequence)
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t length = at(sequence + 1) - at(sequence);
        if (length > 0) problems.push_back(problem_at(t, o, 0, head, at(sequence), length, length));
      }
    return problems;
  }
  for (int64_t batch = 0; batch < t.q.sizes[0]; ++batch)
    for (int64_t head = 0; head < heads; ++head) problems.push_back(problem_at(t, o, batch, head, 0, t.q.sizes[2], t.k.sizes[2]));
  return problems;
}

}  // namespace jepa
