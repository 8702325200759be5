// Masked attention one visible pair at a time: see masked_attention/exact.h.
#include "masked_attention/exact.h"

#include <cmath>
#include <vector>

#include "masked_attention/pack.h"

namespace jepa {

namespace {

using Matrix = std::vector<float>;  // rows of head_dim

template <typename T>
Matrix read(const AttentionProblem& p, const Rows& source, const Rotation& rotation, int64_t count) {
  Matrix rows(static_cast<size_t>(count * p.dim));
  for (int64_t r = 0; r < count; ++r) pack_row<Baseline, T>(source, rotation, r, p.dim, rows.data() + r * p.dim);
  return rows;
}

template <typename T>
bool rows_are_finite(const AttentionProblem& p, const Rows& source, int64_t count) {
  for (int64_t r = 0; r < count; ++r) {
    prefetch_row<T>(source, r + kPrefetchRows, count, p.dim);
    if (!row_is_finite(reinterpret_cast<const T*>(source.data) + r * source.stride, p.dim)) return false;
  }
  return true;
}

bool attends(const AttentionProblem& p, int64_t query, int64_t key) {
  return key < p.key_limit(query) && (p.mask == nullptr || p.mask[query * p.mask_row + key * p.mask_column] != 0);
}

float dot(const float* a, const float* b, int dim) {
  float sum = 0.0f;
  for (int c = 0; c < dim; ++c) sum += a[c] * b[c];
  return sum;
}

void add_scaled(float* to, float factor, const float* from, int dim) {
  for (int c = 0; c < dim; ++c) to[c] += factor * from[c];
}

template <typename T>
void forward(const AttentionProblem& p) {
  const Matrix q = read<T>(p, p.q, query_rotation(p), p.queries), k = read<T>(p, p.k, key_rotation(p), p.keys);
  const Matrix v = read<T>(p, p.v, Rotation{}, p.keys);
  std::vector<float> scores(static_cast<size_t>(p.keys)), sum(static_cast<size_t>(p.dim));
  for (int64_t i = 0; i < p.queries; ++i) {
    float highest = -INFINITY, total = 0.0f;
    for (int64_t j = 0; j < p.keys; ++j) {
      if (!attends(p, i, j)) continue;
      scores[j] = p.scale * dot(&q[i * p.dim], &k[j * p.dim], p.dim);
      if (!(scores[j] <= highest)) highest = scores[j];
    }
    sum.assign(sum.size(), 0.0f);
    for (int64_t j = 0; j < p.keys; ++j) {
      if (!attends(p, i, j)) continue;
      const float probability = std::exp(scores[j] - highest);
      total += probability;
      add_scaled(sum.data(), probability, &v[j * p.dim], p.dim);
    }
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    for (float& x : sum) x *= inverse;
    write_row<Baseline, T>(sum.data(), 1.0f, p.out, i, p.dim);
    p.lse[i * p.lse_stride] = total == 0.0f ? -INFINITY : highest + std::log(total);
  }
}

template <typename T>
void backward(const AttentionProblem& p) {
  const Matrix q = read<T>(p, p.q, query_rotation(p), p.queries), k = read<T>(p, p.k, key_rotation(p), p.keys);
  const Matrix v = read<T>(p, p.v, Rotation{}, p.keys), dout = read<T>(p, p.dout, Rotation{}, p.queries);
  const Matrix out = read<T>(p, p.out, Rotation{}, p.queries);
  Matrix dq(q.size()), dk(k.size()), dv(v.size());
  for (int64_t i = 0; i < p.queries; ++i) {
    const float lse = p.lse[i * p.lse_stride];
    const float delta = dot(&dout[i * p.dim], &out[i * p.dim], p.dim);
    for (int64_t j = 0; j < p.keys; ++j) {
      if (!attends(p, i, j)) continue;
      const float probability = std::exp(p.scale * dot(&q[i * p.dim], &k[j * p.dim], p.dim) - lse);
      const float gradient = p.scale * probability * (dot(&dout[i * p.dim], &v[j * p.dim], p.dim) - delta);
      add_scaled(&dv[j * p.dim], probability, &dout[i * p.dim], p.dim);
      add_scaled(&dk[j * p.dim], gradient, &q[i * p.dim], p.dim);
      add_scaled(&dq[i * p.dim], gradient, &k[j * p.dim], p.dim);
    }
  }
  for (int64_t i = 0; i < p.queries; ++i) {
    if (p.q_cos != nullptr) rotate_back(&dq[i * p.dim], p.q_cos + i * p.q_cos_stride, p.q_sin + i * p.q_sin_stride, p.dim);
    write_row<Baseline, T>(&dq[i * p.dim], 1.0f, p.dq, i, p.dim);
  }
  for (int64_t j = 0; j < p.keys; ++j) {
    if (p.k_cos != nullptr) rotate_back(&dk[j * p.dim], p.k_cos + j * p.k_cos_stride, p.k_sin + j * p.k_sin_stride, p.dim);
    write_row<Baseline, T>(&dk[j * p.dim], 1.0f, p.dk, j, p.dim);
    write_row<Baseline, T>(&dv[j * p.dim], 1.0f, p.dv, j, p.dim);
  }
}

template <typename T>
bool inputs_are_finite(const AttentionProblem& p) {
  return rows_are_finite<T>(p, p.q, p.queries) && rows_are_finite<T>(p, p.k, p.keys) && rows_are_finite<T>(p, p.v, p.keys) &&
         rows_are_finite<T>(p, p.dout, p.queries);
}

}  // namespace

bool backward_inputs_are_finite(const AttentionProblem& p, DType dtype) {
  if (dtype == DType::kBFloat16) return inputs_are_finite<bf16>(p);
  if (dtype == DType::kFloat16) return inputs_are_finite<fp16>(p);
  return inputs_are_finite<float>(p);
}

void attention_forward_exact(const AttentionProblem& p, DType dtype) {
  if (dtype == DType::kBFloat16) return forward<bf16>(p);
  if (dtype == DType::kFloat16) return forward<fp16>(p);
  forward<float>(p);
}

void attention_backward_exact(const AttentionProblem& p, DType dtype) {
  if (dtype == DType::kBFloat16) return backward<bf16>(p);
  if (dtype == DType::kFloat16) return backward<fp16>(p);
  backward<float>(p);
}

}  // namespace jepa
