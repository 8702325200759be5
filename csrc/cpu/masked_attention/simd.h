// Vectors for the attention kernels: one struct an instruction set. kPack values share a 32-bit unit: one float, or two bf16 that
// vdpbf16ps multiplies and adds at once. Units are what is broadcast, loaded and transposed, so one micro-kernel serves both.
#pragma once

#include <cstdint>
#include <cstring>

#include "jepa/float_types.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

// Minimax polynomials of 2^f, exact at f = 0. Relative errors before rounding: 9.2e-8, 8.2e-8, 2.9e-6.
constexpr float kExp2Centred[] = {1.0f, 0.693146978f, 0.240222421f, 0.0555073374f, 0.00967151266f, 0.00132647269f};  // |f| <= 1/2
constexpr float kExp2Degree5[] = {1.0f, 0.693151312f, 0.24016445f, 0.0557999132f, 0.00901703022f, 0.00186713011f};   // 0 <= f < 1
constexpr float kExp2Degree4[] = {1.0f, 0.693044845f, 0.241280205f, 0.0522424735f, 0.0134266846f};                   // 0 <= f < 1

constexpr float kLog2E = 1.44269504f;
constexpr float kLog2ERest = 1.92596303e-8f;  // log2(e) - kLog2E

template <int Lanes>
struct Generic {
  typedef float Vec __attribute__((vector_size(4 * Lanes)));
  typedef int32_t IVec __attribute__((vector_size(4 * Lanes)));
  typedef float LooseVec __attribute__((vector_size(4 * Lanes), aligned(4), may_alias));
  typedef int32_t LooseIVec __attribute__((vector_size(4 * Lanes), aligned(4), may_alias));
  using Element = float;
  static constexpr int kLanes = Lanes;
  static constexpr int kPack = 1;
  static constexpr int kRows = 4;          // rows of a register tile
  static constexpr float kLogBase = 1.0f;  // exponential(x) is e^x: scores keep their natural unit, for float32's sake

  static Vec zero() { return Vec{}; }
  static Vec set(float x) { return Vec{} + x; }
  static Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
  static void store(float* p, Vec x) { *reinterpret_cast<LooseVec*>(p) = x; }
  static IVec load_mask(const uint32_t* p) { return *reinterpret_cast<const LooseIVec*>(p); }
  static Vec keep(IVec mask, Vec x) { return reinterpret_cast<Vec>(reinterpret_cast<IVec>(x) & mask); }
  static Vec select(IVec mask, Vec x, Vec otherwise) {
    return reinterpret_cast<Vec>((reinterpret_cast<IVec>(x) & mask) | (reinterpret_cast<IVec>(otherwise) & ~mask));
  }
  static Vec max(Vec a, Vec b) { return a > b ? a : b; }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static Vec subtract_product(Vec a, float b, Vec c) { return a * set(b) - c; }  // a * b - c
  static bool any_greater(Vec x, float limit) {
    float lanes[Lanes];
    store(lanes, x);
    bool any = false;
    for (float lane : lanes) any = any || lane > limit;
    return any;
  }

  static Vec broadcast_unit(const float* p) { return set(*p); }
  static Vec load_units(const float* p) { return load(p); }
  static void store_elements(float* p, Vec x) { store(p, x); }

  // Lanes x Lanes units; strides in units.
  static void transpose(const void* source, int64_t from_stride, void* target, int64_t to_stride) {
    const float* from = static_cast<const float*>(source);
    float* to = static_cast<float*>(target);
    for (int i = 0; i < Lanes; ++i)
      for (int j = 0; j < Lanes; ++j) to[j * to_stride + i] = from[i * from_stride + j];
  }
};

// e^x without scalef: the rounded exponent is added to a power of two built in the integer unit. Below e^-87.7 the result is 0.
// The fraction is taken from x by a product of twice the precision: an error of x log2(e) would become one of the result.
template <typename A>
inline typename A::Vec exponential_by_bits(typename A::Vec x) {
  using Vec = typename A::Vec;
  using IVec = typename A::IVec;
  const Vec magic = A::set(12582912.0f);  // 1.5 * 2^23: the sum's low bits are the rounded integer
  x = A::set(-88.0f) > x ? A::set(-88.0f) : x;
  x = A::set(89.0f) < x ? A::set(89.0f) : x;
  const Vec shifted = x * A::set(kLog2E) + magic;
  const Vec f = A::fma(x, A::set(kLog2ERest), A::subtract_product(x, kLog2E, shifted - magic));
  Vec p = A::set(kExp2Centred[5]);
  for (int i = 4; i >= 0; --i) p = A::fma(p, f, A::set(kExp2Centred[i]));
  const IVec exponent = (reinterpret_cast<IVec>(shifted) + 127) << 23;
  return p * reinterpret_cast<Vec>(exponent);
}

struct Baseline : Generic<4> {
  static Vec exponential(Vec x) { return exponential_by_bits<Baseline>(x); }
  static Vec dot(Vec sum, Vec a, Vec b) { return a * b + sum; }
};

#if defined(__AVX2__) && defined(__FMA__)
struct Avx2 : Generic<8> {
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec subtract_product(Vec a, float b, Vec c) { return _mm256_fmsub_ps(a, _mm256_set1_ps(b), c); }
  static Vec dot(Vec sum, Vec a, Vec b) { return _mm256_fmadd_ps(a, b, sum); }
  static Vec broadcast_unit(const float* p) { return _mm256_broadcast_ss(p); }
  static Vec exponential(Vec x) { return exponential_by_bits<Avx2>(x); }
  static bool any_greater(Vec x, float limit) {
    return _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_GT_OQ)) != 0;
  }
  static void transpose(const void* source, int64_t from_stride, void* target, int64_t to_stride) {
    const float* from = static_cast<const float*>(source);
    float* to = static_cast<float*>(target);
    __m256 r[8], t[8];
    for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
      _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
  }
};
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
struct Avx512 : Generic<16> {
  static constexpr int kRows = 8;

  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec subtract_product(Vec a, float b, Vec c) { return _mm512_fmsub_ps(a, _mm512_set1_ps(b), c); }
  static Vec dot(Vec sum, Vec a, Vec b) { return _mm512_fmadd_ps(a, b, sum); }
  static Vec broadcast_unit(const float* p) { return _mm512_set1_ps(*p); }
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static Vec select(IVec mask, Vec x, Vec otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)), x);
  }
  static bool any_greater(Vec x, float limit) { return _mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0; }

  // scalef multiplies by 2^n: overflow, underflow and NaN come out right without a branch. The lower bound keeps -inf from making
  // a NaN of the fraction.
  static Vec exponential(Vec x) {
    x = _mm512_max_ps(set(-200.0f), x);  // the second operand where either is NaN
    const Vec n = _mm512_roundscale_ps(x * set(kLog2E), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const Vec f = fma(x, set(kLog2ERest), _mm512_fmsub_ps(x, set(kLog2E), n));
    return _mm512_scalef_ps(polynomial(f, kExp2Degree5), n);
  }

  template <int N>
  static Vec polynomial(Vec f, const float (&coefficients)[N]) {
    Vec p = set(coefficients[N - 1]);
#pragma GCC unroll 8
    for (int i = N - 2; i >= 0; --i) p = fma(p, f, set(coefficients[i]));
    return p;
  }

  static void transpose(const void* from, int64_t from_stride, void* to, int64_t to_stride) {
    __m512 r[16], t[16];
    const float* source = static_cast<const float*>(from);
    float* target = static_cast<float*>(to);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(source + i * from_stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      r[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      r[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      r[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      _mm512_storeu_ps(target + i * to_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
      _mm512_storeu_ps(target + (i + 8) * to_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
      _mm512_storeu_ps(target + (i + 4) * to_stride, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88));
      _mm512_storeu_ps(target + (i + 12) * to_stride, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd));
    }
  }
};
#endif

#if defined(__AVX512BF16__)
struct Avx512Bf16 : Avx512 {
  using Element = bf16;
  static constexpr int kPack = 2;

  static Vec dot(Vec sum, Vec a, Vec b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static Vec broadcast_unit(const bf16* p) {
    int32_t unit;
    memcpy(&unit, p, sizeof unit);
    return _mm512_castsi512_ps(_mm512_set1_epi32(unit));
  }
  static Vec load_units(const bf16* p) { return _mm512_loadu_ps(reinterpret_cast<const float*>(p)); }
  static void store_elements(bf16* p, Vec x) {
    const __m256bh rounded = _mm512_cvtneps_pbh(x);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(rounded));
  }
  static Vec unit_of_ones() { return _mm512_castsi512_ps(_mm512_set1_epi32(0x3f803f80)); }
  // Lane i of the 16 units holds (x[i], y[i]). Returns what was stored.
  static Vec store_unit_pair(bf16* p, Vec x, Vec y) {
    alignas(64) static const uint16_t kInterleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                         8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512bh rounded = _mm512_cvtne2ps_pbh(y, x);
    const __m512i order = _mm512_load_si512(kInterleave);
    const __m512i units = _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(rounded));
    _mm512_storeu_si512(p, units);
    return _mm512_castsi512_ps(units);
  }
  // exponential(x) is 2^x, with log2(e) folded into the scale. Degree 4 suffices for what is rounded to bf16 at once (2e-3).
  static constexpr float kLogBase = kLog2E;
  static Vec exponential(Vec x) {
    const Vec f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return _mm512_scalef_ps(polynomial(f, kExp2Degree4), x);  // scalef takes floor(x) itself
  }
};
#endif

}  // namespace
}  // namespace jepa
