// Binding of masked attention on CPUs.
#include "cpu_operators.h"
#include "jepa/masked_attention.h"
#include "tensor_view_caster.h"

namespace jepa {

namespace py = pybind11;

namespace {

// Unpacks what both directions share, in the order of the arguments.
MaskedAttentionOptions options_of(const TensorView& bool_mask, const TensorView& key_lengths, const TensorView& cu_seqlens,
                                  int64_t max_seqlen, int64_t tokens_per_frame, int64_t query_frame_offset, const TensorView& q_cos,
                                  const TensorView& q_sin, const TensorView& k_cos, const TensorView& k_sin, double scale,
                                  int num_threads) {
  return {bool_mask, key_lengths, cu_seqlens, max_seqlen, tokens_per_frame, query_frame_offset,
          q_cos,     q_sin,       k_cos,      k_sin,      scale,            num_threads};
}

}  // namespace

void bind_masked_attention(py::module_& m) {
  m.def(
      "masked_attention_forward",
      [](const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& out, const TensorView& lse,
         const TensorView& bool_mask, const TensorView& key_lengths, const TensorView& cu_seqlens, int64_t max_seqlen,
         int64_t tokens_per_frame, int64_t query_frame_offset, const TensorView& q_cos, const TensorView& q_sin, const TensorView& k_cos,
         const TensorView& k_sin, double scale, int num_threads) {
        const MaskedAttentionOptions options = options_of(bool_mask, key_lengths, cu_seqlens, max_seqlen, tokens_per_frame,
                                                          query_frame_offset, q_cos, q_sin, k_cos, k_sin, scale, num_threads);
        py::gil_scoped_release unlocked;
        masked_attention_forward_cpu(q, k, v, out, lse, options);
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse"), py::arg("bool_mask"), py::arg("key_lengths"),
      py::arg("cu_seqlens"), py::arg("max_seqlen"), py::arg("tokens_per_frame"), py::arg("query_frame_offset"), py::arg("q_cos"),
      py::arg("q_sin"), py::arg("k_cos"), py::arg("k_sin"), py::arg("scale"), py::arg("num_threads"));
  m.def(
      "masked_attention_backward",
      [](const TensorView& dout, const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& out,
         const TensorView& lse, const TensorView& dq, const TensorView& dk, const TensorView& dv, const TensorView& bool_mask,
         const TensorView& key_lengths, const TensorView& cu_seqlens, int64_t max_seqlen, int64_t tokens_per_frame,
         int64_t query_frame_offset, const TensorView& q_cos, const TensorView& q_sin, const TensorView& k_cos, const TensorView& k_sin,
         double scale, int num_threads) {
        const MaskedAttentionOptions options = options_of(bool_mask, key_lengths, cu_seqlens, max_seqlen, tokens_per_frame,
                                                          query_frame_offset, q_cos, q_sin, k_cos, k_sin, scale, num_threads);
        py::gil_scoped_release unlocked;
        masked_attention_backward_cpu(dout, q, k, v, out, lse, dq, dk, dv, options);
      },
      py::arg("dout"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse"), py::arg("dq"), py::arg("dk"),
      py::arg("dv"), py::arg("bool_mask"), py::arg("key_lengths"), py::arg("cu_seqlens"), py::arg("max_seqlen"),
      py::arg("tokens_per_frame"), py::arg("query_frame_offset"), py::arg("q_cos"), py::arg("q_sin"), py::arg("k_cos"),
      py::arg("k_sin"), py::arg("scale"), py::arg("num_threads"));
}

}  // namespace jepa
