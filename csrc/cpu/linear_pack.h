// Operands of the linear layer's products as units of two bf16 of one row or column, converted from float32 on the way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "linear_kernel.h"
#include "masked_attention/simd.h"

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

using Lanes = Avx512Bf16;
using Vec = Lanes::Vec;

inline void store_units(bf16* p, __m512i units) { _mm512_storeu_si512(p, units); }

// 32 consecutive values as 16 units.
inline __m512i units_of(const float* p) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(p + 16), _mm512_loadu_ps(p)));
}
inline __m512i units_of(const bf16* p) { return _mm512_loadu_si512(p); }

// Unit i holds (first[i], second[i]), i < 16.
inline __m512i interleaved(__m512i halves) {
  alignas(64) static const uint16_t kInterleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), halves);
}
inline __m512i paired(const float* first, const float* second) {
  return interleaved(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(second), _mm512_loadu_ps(first))));
}
inline __m512i paired(const bf16* first, const bf16* second) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
  return interleaved(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}

// 16 columns of B from the 16 rows of its transpose, 32 values of each a step; the last step is padded with zeros.
template <typename T>
void pack_transposed(const T* source, int64_t stride, int64_t inner, bf16* panel, int64_t width) {
  alignas(64) bf16 units[16 * 32], turned[16 * 32];
  for (int64_t k = 0; k < inner; k += 32) {
    const int64_t left = std::min<int64_t>(32, inner - k);
    for (int i = 0; i < 16; ++i) {
      const T* from = source + i * stride + k;
      T padded[32] = {};
      if (left < 32) from = static_cast<const T*>(memcpy(padded, from, static_cast<size_t>(left) * sizeof(T)));
      store_units(units + 32 * i, units_of(from));
    }
    bf16* to = panel + k * width;
    if (left == 32) {
      Lanes::transpose(units, 16, to, width);
      continue;
    }
    Lanes::transpose(units, 16, turned, 16);
    for (int64_t i = 0; i < (left + 1) / 2; ++i) store_units(to + 2 * i * width, _mm512_load_si512(turned + 32 * i));
  }
}

// 16 columns of B from B itself, two rows a unit; a last single row is paired with zeros.
template <typename T>
void pack_straight(const T* source, int64_t stride, int64_t inner, bf16* panel, int64_t width) {
  static const T kZeros[16] = {};
  for (int64_t k = 0; k < inner; k += 2) {
    const T* row = source + k * stride;
    store_units(panel + k * width, paired(row, k + 1 < inner ? row + stride : kZeros));
  }
}

// `width` columns of B from `column` on, for the block of `inner` that begins at `first`: [block / 2][width] units.
template <typename T>
void pack_panel(const ProductTask& task, int64_t column, int64_t width, int64_t first, int64_t block, bf16* panel) {
  const T* b = static_cast<const T*>(task.b);
  for (int64_t v = 0; v < width; v += 16) {
    if (task.b_transposed)
      pack_transposed(b + (column + v) * task.b_stride + first, task.b_stride, block, panel + 2 * v, width);
    else
      pack_straight(b + first * task.b_stride + column + v, task.b_stride, block, panel + 2 * v, width);
  }
}

inline Vec widened(const bf16* p) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return reinterpret_cast<Vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(low), 16));
}

void pack_left(const bf16* source, int64_t stride, int64_t rows, int64_t inner, int64_t inner_block, int64_t group, bf16* packed, float* sums) {
  const int64_t row = group * kGroupRows, width = std::min(kGroupRows, rows - row);
  for (int64_t first = 0; first < inner; first += inner_block) {
    const int64_t block = std::min(inner_block, inner - first);
    bf16* to = packed + packed_offset(rows, group, first, block);
    for (int64_t v = 0; v < width; v += 16) pack_straight(source + first * stride + row + v, stride, block, to + 2 * v, width);
  }
  if (sums == nullptr) return;
  for (int64_t v = 0; v < width; v += 16) {
    Vec sum = Lanes::zero();
    for (int64_t k = 0; k < inner; ++k) sum += widened(source + k * stride + row + v);
    Lanes::store(sums + row + v, sum);
  }
}

}  // namespace
}  // namespace jepa
