// Rows of q, k, v and dout become the operands of the micro-kernels; RoPE is applied on the way.
#pragma once

#include <type_traits>

#include "layout.h"
#include "simd.h"

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

struct Rotation {
  const float* cosine = nullptr;
  const float* sine = nullptr;
  int64_t cosine_stride = 0, sine_stride = 0;
};

inline Rotation query_rotation(const AttentionProblem& p) { return {p.q_cos, p.q_sin, p.q_cos_stride, p.q_sin_stride}; }
inline Rotation key_rotation(const AttentionProblem& p) { return {p.k_cos, p.k_sin, p.k_cos_stride, p.k_sin_stride}; }

// Rows are a cache line or two: a call to memcpy would cost as much as the copy. They often come from beyond the caches, so the fewer
// instructions a line takes, the more lines are on their way at once.
template <int Bytes, typename T>
inline int copy_pieces(const T* __restrict from, T* __restrict to, int begin, int end) {
  constexpr int kPiece = Bytes / static_cast<int>(sizeof(T));
  for (; begin + kPiece <= end; begin += kPiece) memcpy(to + begin, from + begin, Bytes);
  return begin;
}

template <typename T>
inline void copy_row(const T* __restrict from, T* __restrict to, int dim) {
  int c = copy_pieces<64>(from, to, 0, dim);
  c = copy_pieces<16>(from, to, c, dim);
  for (; c < dim; ++c) to[c] = from[c];
}

inline void convert_row(const float* from, float* to, int dim) { copy_row(from, to, dim); }
inline void convert_row(const bf16* from, bf16* to, int dim) { copy_row(from, to, dim); }
template <typename T>
inline void convert_row(const T* from, float* to, int dim) {
  for (int c = 0; c < dim; ++c) to[c] = to_float(from[c]);
}

inline void store_rounded(float x, float* to) { *to = x; }
inline void store_rounded(bf16 x, bf16* to) { *to = x; }
template <typename T>
inline void store_rounded(T x, float* to) {
  *to = to_float(x);
}

// The rotated row is rounded to the tensors' type, as the product in PyTorch would see it.
template <typename T, typename E>
inline void rotate_row(const T* from, const float* __restrict cosine, const float* __restrict sine, E* __restrict to, int dim) {
  for (int c = 0; c < dim; c += 2) {
    const float even = to_float(from[c]), odd = to_float(from[c + 1]);
    store_rounded(Cast<T>::from(even * cosine[c] + odd * sine[c]), to + c);
    store_rounded(Cast<T>::from(odd * cosine[c + 1] + even * sine[c + 1]), to + c + 1);
  }
}

// Rows of a head lie a token apart: their lines come from afar, and no hardware prefetcher follows the stride.
constexpr int64_t kPrefetchRows = 24;

template <typename T>
inline void prefetch_row(const Rows& rows, int64_t row, int64_t count, int dim) {
  if (row >= count) return;
  const char* line = rows.data + row * rows.stride * static_cast<int64_t>(sizeof(T));
  for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(T)); byte += 64) __builtin_prefetch(line + byte);
}

template <class A, typename T>
inline void pack_row(const Rows& rows, const Rotation& rotation, int64_t row, int dim, typename A::Element* to) {
  const T* from = reinterpret_cast<const T*>(rows.data) + row * rows.stride;
  if (rotation.cosine != nullptr)
    rotate_row(from, rotation.cosine + row * rotation.cosine_stride, rotation.sine + row * rotation.sine_stride, to, dim);
  else
    convert_row(from, to, dim);
}

// dx[c] = dy[c] cos[c] + dy[c ^ 1] sin[c ^ 1], in place.
inline void rotate_back(float* row, const float* __restrict cosine, const float* __restrict sine, int dim) {
  for (int c = 0; c < dim; c += 2) {
    const float even = row[c], odd = row[c + 1];
    row[c] = even * cosine[c] + odd * sine[c + 1];
    row[c + 1] = odd * cosine[c + 1] + even * sine[c];
  }
}

// A row of the result: factor * from, rounded once.
template <class A, typename T>
inline void write_row(const float* from, float factor, const Rows& rows, int64_t row, int dim) {
  T* to = reinterpret_cast<T*>(rows.data) + row * rows.stride;
  int c = 0;
  if constexpr (std::is_same_v<T, typename A::Element>)
    for (; c + A::kLanes <= dim; c += A::kLanes) A::store_elements(to + c, A::load(from + c) * A::set(factor));
  for (; c < dim; ++c) to[c] = Cast<T>::from(from[c] * factor);
}

// NaN and infinities have every exponent bit set. Integers, so that the compiler needs no leave to reorder.
inline uint32_t not_finite(float x) { return (float_bits(x) & 0x7f800000u) == 0x7f800000u; }
inline uint16_t not_finite(bf16 x) { return (x.bits & 0x7f80u) == 0x7f80u; }
inline uint16_t not_finite(fp16 x) { return (x.bits & 0x7c00u) == 0x7c00u; }

template <typename T>
inline bool row_is_finite(const T* row, int dim) {
  decltype(not_finite(T{})) found = 0;
  for (int c = 0; c < dim; ++c) found |= not_finite(row[c]);
  return found == 0;
}

// kPack rows, interleaved so that each unit holds the values of one channel. `width` is a multiple of kRows, for bf16 of 8.
inline void interleave(const float* rows, int64_t, float* to, int64_t width) {
  memcpy(to, rows, sizeof(float) * static_cast<size_t>(width));
}
#if defined(__SSE2__)
inline void interleave(const bf16* rows, int64_t stride, bf16* to, int64_t width) {
  for (int64_t c = 0; c < width; c += 8) {
    const __m128i even = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + c));
    const __m128i odd = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + stride + c));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * c), _mm_unpacklo_epi16(even, odd));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * c + 8), _mm_unpackhi_epi16(even, odd));
  }
}
#endif

// Panels of kRows channels: [channel / kRows][keys / kPack][kRows] units, so that the micro-kernel reads one stream.
// `rows` are 8 consecutive rows from row `first` on.
template <class A>
inline void pack_panels(const typename A::Element* rows, int64_t stride, const Layout<A>& layout, int64_t first,
                        typename A::Element* panels) {
  typename A::Element line[(kMaxHeadDim + A::kRows) * A::kPack];
  constexpr int64_t kStep = A::kRows * A::kPack;
  for (int64_t r = 0; r < 8; r += A::kPack) {
    interleave(rows + r * stride, stride, line, layout.row_panels * A::kRows);
    for (int64_t panel = 0; panel < layout.row_panels; ++panel)
      memcpy(panels + (panel * (layout.keys / A::kPack) + (first + r) / A::kPack) * kStep, line + panel * kStep, kStep * sizeof line[0]);
  }
}

// A vector's worth of rows, transposed: to[unit * width + lane].
template <class A>
inline void pack_transposed(const typename A::Element* rows, int64_t stride, const Layout<A>& layout, int64_t width,
                            typename A::Element* to) {
  for (int64_t unit = 0; unit < layout.unit_stride; unit += A::kLanes)
    A::transpose(rows + unit * A::kPack, stride / A::kPack, to + unit * width * A::kPack, width);
}

template <typename E>
inline void clear(E* to, int64_t count) {
  memset(static_cast<void*>(to), 0, sizeof(E) * static_cast<size_t>(count));
}

}  // namespace
}  // namespace jepa
