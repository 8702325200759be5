// Vectors of float32 that load and store float32, bfloat16 and float16, at the width of the instruction set being compiled; and of
// float64 for the exact path. Comparisons and arithmetic are the compiler's own operators on them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "jepa/float_types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

// Loads element by element, for types and instruction sets without a conversion of whole vectors.
template <typename Real, int Width>
struct PlainLanes {
  typedef Real Vec __attribute__((vector_size(sizeof(Real) * Width)));
  typedef Real LooseVec __attribute__((vector_size(sizeof(Real) * Width), aligned(sizeof(Real)), may_alias));
  using Scalar = Real;
  static constexpr int kLanes = Width;

  static Vec set(Real x) { return x - Vec{}; }  // a sum with 0 would be computed, for it changes -0
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static Vec load(const Real* p) { return *reinterpret_cast<const LooseVec*>(p); }
  static void store(Real* p, Vec x) { *reinterpret_cast<LooseVec*>(p) = x; }
  template <typename T>
  static Vec load(const T* p) {
    Vec x;
    for (int i = 0; i < Width; ++i) x[i] = static_cast<Real>(to_float(p[i]));
    return x;
  }
  template <typename T>
  static void store(T* p, Vec x) {
    for (int i = 0; i < Width; ++i) p[i] = Cast<T>::from(static_cast<float>(x[i]));
  }
  static bool any_above(Vec x, Real limit) {
    bool any = false;
    for (int i = 0; i < Width; ++i) any = any || x[i] > limit;
    return any;
  }
  static double sum(Vec x) {
    double total = 0;
    for (int i = 0; i < Width; ++i) total += static_cast<double>(x[i]);
    return total;
  }
};

#if defined(__AVX512F__) && defined(__AVX512BW__)

struct FloatLanes : PlainLanes<float, 16> {
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static bool any_above(Vec x, float limit) { return _mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0; }
  static double sum(Vec x) {
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(high)));
  }
  using PlainLanes::load;
  using PlainLanes::store;
  static Vec load(const bf16* p) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static Vec load(const fp16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static void store(bf16* p, Vec x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
    const __m512i bits = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bits));
  }
  static void store(fp16* p, Vec x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

struct FloatLanes : PlainLanes<float, 8> {
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static bool any_above(Vec x, float limit) { return _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_GT_OQ)) != 0; }
  static double sum(Vec x) {
    const __m256d pairs = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(pairs), _mm256_extractf128_pd(pairs, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  using PlainLanes::load;
  using PlainLanes::store;
  static Vec load(const bf16* p) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static Vec load(const fp16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static void store(bf16* p, Vec x) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
    const __m256i bits = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(halves));
  }
  static void store(fp16* p, Vec x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

#else

using FloatLanes = PlainLanes<float, 4>;

#endif

using DoubleLanes = PlainLanes<double, 2>;

}  // namespace
}  // namespace jepa
