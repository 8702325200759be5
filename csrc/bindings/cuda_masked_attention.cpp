// Binding of masked attention on GPUs.
#include <algorithm>
#include <string>

#include "checks.h"
#include "cuda_operators.h"
#include "jepa/masked_attention_cuda.h"
#include "tensor_view_caster.h"

namespace jepa {

namespace py = pybind11;

namespace {

constexpr const char* kOperator = "masked_attention";
constexpr int64_t kMaxTokens = int64_t{1} << 30;  // so that sums of two counts stay below 2^31

// (B, H, tokens, D) whose rows the kernels can read and write 16 bytes at a time.
HeadRows rows_of(const TensorView& view, const TensorView& q, int64_t tokens, const char* name) {
  check_view(view, name);
  check_dtype(view, q.dtype, name);
  check_ndim(view, 4, name);
  check_size(view, 0, q.sizes[0], name);
  check_size(view, 1, q.sizes[1], name);
  check_size(view, 2, tokens, name);
  check_size(view, 3, q.sizes[3], name);
  bool whole = reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.strides[3] == 1;
  for (int d = 0; d < 3; ++d) whole = whole && (view.sizes[d] == 1 || view.strides[d] % 8 == 0);
  if (!whole) fail(std::string("masked_attention: rows of ") + name + " must be contiguous and start at multiples of 16 bytes");
  return {view.data, view.strides[0], view.strides[1], view.strides[2]};
}

RotationTables tables_of(const TensorView& cos, const TensorView& sin, const TensorView& q, int64_t tokens, const char* name) {
  check_ndim(cos, 3, name);
  const int64_t tables = cos.sizes[0], head_dim = q.sizes[3];
  if (tables != 1 && tables != q.sizes[0]) fail(std::string("masked_attention: ") + name + ": expected 1 or B tables");
  for (const TensorView* table : {&cos, &sin}) {
    check_contiguous(*table, DType::kFloat32, {tables, tokens, head_dim}, kOperator, name);
    if (reinterpret_cast<uintptr_t>(table->data) % 16 != 0) fail(std::string("masked_attention: ") + name + " is not aligned to 16 bytes");
  }
  return {cos.as<const float>(), sin.as<const float>(), tables == 1 ? 0 : tokens * head_dim};
}

void read_masks(MaskedAttentionCall& call, const TensorView& key_lengths, const TensorView& cu_seqlens, int64_t max_seqlen,
                int64_t tokens_per_frame, int64_t query_frame_offset) {
  if (key_lengths.defined() + cu_seqlens.defined() + (tokens_per_frame > 0) > 1) fail("masked_attention: more than one kind of mask");
  if (key_lengths.defined()) {
    check_contiguous(key_lengths, DType::kInt32, {call.batch}, kOperator, "key_lengths");
    call.key_lengths = key_lengths.as<const int32_t>();
  }
  if (cu_seqlens.defined()) {
    check_ndim(cu_seqlens, 1, "cu_seqlens");
    check_contiguous(cu_seqlens, DType::kInt32, {cu_seqlens.sizes[0]}, kOperator, "cu_seqlens");
    if (cu_seqlens.sizes[0] < 1 || call.batch != 1 || call.query_len != call.key_len || max_seqlen < 0)
      fail("masked_attention: cu_seqlens need at least one bound, a batch of 1, as many keys as queries, and max_seqlen >= 0");
    call.cu_seqlens = cu_seqlens.as<const int32_t>();
    call.num_sequences = static_cast<int>(std::min(cu_seqlens.sizes[0] - 1, kMaxTokens));
    call.max_seqlen = static_cast<int>(std::min<int64_t>(max_seqlen, call.query_len));
  }
  if (tokens_per_frame < 0 || tokens_per_frame > kMaxTokens)
    fail("masked_attention: tokens_per_frame " + std::to_string(tokens_per_frame) + " is out of range");
  call.tokens_per_frame = static_cast<int>(tokens_per_frame);
  // Frames beyond either end change nothing.
  const int64_t frames = 1 + std::max(call.query_len, call.key_len) / std::max<int64_t>(tokens_per_frame, 1);
  call.query_frame_offset = static_cast<int>(std::clamp(query_frame_offset, -frames, frames));
}

void forward(const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& out, const TensorView& lse,
             const TensorView& rotated_k, const TensorView& key_lengths, const TensorView& cu_seqlens, int64_t max_seqlen,
             int64_t tokens_per_frame, int64_t query_frame_offset, const TensorView& q_cos, const TensorView& q_sin,
             const TensorView& k_cos, const TensorView& k_sin, double scale, int path, uintptr_t stream) {
  check_ndim(q, 4, "q");
  check_ndim(k, 4, "k");
  const int64_t query_len = q.sizes[2], key_len = k.sizes[2];
  if (q.dtype != DType::kBFloat16 && q.dtype != DType::kFloat16) fail(std::string("masked_attention: no CUDA kernel for ") + name_of(q.dtype));
  if (query_len > kMaxTokens || key_len > kMaxTokens || q.sizes[0] > kMaxTokens || q.sizes[1] > kMaxTokens)
    fail("masked_attention: a size beyond 2^30");
  if (q.sizes[3] > kMaxTokens || !masked_attention_has_head_dim(static_cast<int>(q.sizes[3])))
    fail("masked_attention: no CUDA kernel for head dim " + std::to_string(q.sizes[3]));
  if (path != 0 && path != 1) fail("masked_attention: path " + std::to_string(path) + " is neither 0 (warp) nor 1 (warpgroup)");
  MaskedAttentionCall call{};
  call.dtype = q.dtype;
  call.batch = static_cast<int>(q.sizes[0]), call.heads = static_cast<int>(q.sizes[1]), call.head_dim = static_cast<int>(q.sizes[3]);
  call.query_len = static_cast<int>(query_len), call.key_len = static_cast<int>(key_len);
  call.q = rows_of(q, q, query_len, "q"), call.k = rows_of(k, q, key_len, "k"), call.v = rows_of(v, q, key_len, "v");
  call.out = rows_of(out, q, query_len, "out");
  check_contiguous(lse, DType::kFloat32, {q.sizes[0], q.sizes[1], query_len}, kOperator, "lse");
  call.lse = lse.as<float>();
  read_masks(call, key_lengths, cu_seqlens, max_seqlen, tokens_per_frame, query_frame_offset);
  set_scale(call, scale);
  RotateKeysCall rotate{};
  const bool rope = q_cos.defined();
  if (q_sin.defined() != rope || k_cos.defined() != rope || k_sin.defined() != rope || rotated_k.defined() != rope)
    fail("masked_attention: of the four tables and rotated_k, all or none");
  if (rope) {
    call.query_tables = tables_of(q_cos, q_sin, q, query_len, "q_cos and q_sin");
    rotate = {call.k,   rows_of(rotated_k, q, key_len, "rotated_k"), tables_of(k_cos, k_sin, q, key_len, "k_cos and k_sin"),
              q.dtype,  call.batch, call.heads, call.key_len, call.head_dim};
    call.k = rotate.out;
  }
  py::gil_scoped_release unlocked;
  if (rope) rotate_keys_cuda(rotate, reinterpret_cast<void*>(stream));
  masked_attention_forward_cuda(call, static_cast<AttentionPath>(path), reinterpret_cast<void*>(stream));
}

}  // namespace

void bind_masked_attention_cuda(py::module_& m) {
  m.def("masked_attention_forward", &forward, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse"),
        py::arg("rotated_k"), py::arg("key_lengths"), py::arg("cu_seqlens"), py::arg("max_seqlen"), py::arg("tokens_per_frame"),
        py::arg("query_frame_offset"), py::arg("q_cos"), py::arg("q_sin"), py::arg("k_cos"), py::arg("k_sin"), py::arg("scale"),
        py::arg("path"), py::arg("stream"));
}

}  // namespace jepa
