// Loads that widen to float32 and stores that round once, at the vector width of the instruction set being compiled.
#pragma once

#include <cstdint>

#include "jepa/float_types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace jepa {
namespace {

inline float to_float(uint8_t x) { return static_cast<float>(x); }

#if defined(__AVX512F__)

constexpr int kLanes = 16;
using Lanes = __m512;
using Mask = __mmask16;

inline Mask first(int64_t count) { return static_cast<Mask>((1u << count) - 1u); }

inline Lanes widen(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }
inline Lanes widen_fp16(__m256i halves) { return _mm512_cvtph_ps(halves); }
inline Lanes widen_bf16(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }

inline Lanes load(const float* p) { return _mm512_loadu_ps(p); }
inline Lanes load(const uint8_t* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Lanes load(const fp16* p) { return widen_fp16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Lanes load(const bf16* p) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

inline Lanes load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
inline Lanes load(const uint8_t* p, Mask m) { return widen(_mm_maskz_loadu_epi8(m, p)); }
inline Lanes load(const fp16* p, Mask m) { return widen_fp16(_mm256_maskz_loadu_epi16(m, p)); }
inline Lanes load(const bf16* p, Mask m) { return widen_bf16(_mm256_maskz_loadu_epi16(m, p)); }

inline __m256i to_bf16_lanes(Lanes x) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(x);  // flushes float32 subnormals to zero
#else
  const __m512i u = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet));
#endif
}
inline __m256i to_fp16_lanes(Lanes x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline void store(float* p, Lanes x) { _mm512_storeu_ps(p, x); }
inline void store(fp16* p, Lanes x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_fp16_lanes(x)); }
inline void store(bf16* p, Lanes x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16_lanes(x)); }

inline void store(float* p, Lanes x, Mask m) { _mm512_mask_storeu_ps(p, m, x); }
inline void store(fp16* p, Lanes x, Mask m) { _mm256_mask_storeu_epi16(p, m, to_fp16_lanes(x)); }
inline void store(bf16* p, Lanes x, Mask m) { _mm256_mask_storeu_epi16(p, m, to_bf16_lanes(x)); }

inline Lanes normalise(Lanes x, float mean, float inv_std) {
  return _mm512_mul_ps(_mm512_sub_ps(x, _mm512_set1_ps(mean)), _mm512_set1_ps(inv_std));
}

#elif defined(__AVX2__)

constexpr int kLanes = 8;
using Lanes = __m256;

inline Lanes load(const float* p) { return _mm256_loadu_ps(p); }
inline Lanes widen(__m128i low_bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low_bytes)); }
inline Lanes load(const uint8_t* p) { return widen(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline Lanes load(const fp16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Lanes load(const bf16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}

inline void store(float* p, Lanes x) { _mm256_storeu_ps(p, x); }
inline void store(fp16* p, Lanes x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(bf16* p, Lanes x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
  const __m256i bits = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
  const __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(halves));
}

inline Lanes normalise(Lanes x, float mean, float inv_std) {
  return _mm256_mul_ps(_mm256_sub_ps(x, _mm256_set1_ps(mean)), _mm256_set1_ps(inv_std));
}

#endif

// dst[i] = (src[i] - mean) * inv_std for contiguous src. Reads nothing beyond n. With `spill`, up to kLanes - 1 elements of dst
// beyond n may take any value: the caller writes them next, and a whole store costs a tenth of a masked one on some processors.
template <typename Pixel, typename Out>
inline void normalise_run(const Pixel* src, Out* dst, int64_t n, float mean, float inv_std, bool spill) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + kLanes <= n; i += kLanes) store(dst + i, normalise(load(src + i), mean, inv_std));
  if (i == n) return;
  const Mask m = first(n - i);
  const Lanes tail = normalise(load(src + i, m), mean, inv_std);
  if (spill)
    store(dst + i, tail);
  else
    store(dst + i, tail, m);
#else
  (void)spill;
#if defined(__AVX2__)
  for (; i + kLanes <= n; i += kLanes) store(dst + i, normalise(load(src + i), mean, inv_std));
  if (i < n && n >= kLanes) {  // the last lanes overlap what is written already, with the same values
    i = n - kLanes;
    store(dst + i, normalise(load(src + i), mean, inv_std));
    i = n;
  }
#endif
  for (; i < n; ++i) dst[i] = Cast<Out>::from((to_float(src[i]) - mean) * inv_std);
#endif
}

#if defined(__AVX2__)

// One channel's 16 bytes out of 48 interleaved ones: byte 3 * i + channel of the three registers.
inline __m128i channel_of_three(__m128i a, __m128i b, __m128i c, int channel) {
  alignas(16) static constexpr int8_t kPick[3][3][16] = {
      {{0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 1, 4, 7, 10, 13}},
      {{1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14}},
      {{2, 5, 8, 11, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, 1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15}}};
  const auto pick = [&](__m128i x, int part) {
    return _mm_shuffle_epi8(x, _mm_load_si128(reinterpret_cast<const __m128i*>(kPick[channel][part])));
  };
  return _mm_or_si128(pick(a, 0), _mm_or_si128(pick(b, 1), pick(c, 2)));
}

// dst[channel * channel_step + i] = (src[3 * i + channel] - mean[channel]) * inv_std[channel]; `spill` as above, for each channel.
template <typename Out>
inline void normalise_run_rgb(const uint8_t* src, Out* dst, int64_t channel_step, int64_t n, const double* mean, const double* inv_std,
                              bool spill) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t count = n - i < 16 ? n - i : 16;
    const uint8_t* from = src + 3 * i;
    alignas(16) uint8_t tail[48];
    if (count < 16) {  // a full load would read beyond the patch, and at the end beyond the image
      memcpy(tail, from, static_cast<size_t>(3 * count));
      from = tail;
    }
    const __m128i* p = reinterpret_cast<const __m128i*>(from);
    const __m128i a = _mm_loadu_si128(p), b = _mm_loadu_si128(p + 1), c = _mm_loadu_si128(p + 2);
    for (int channel = 0; channel < 3; ++channel) {
      const __m128i bytes = channel_of_three(a, b, c, channel);
      const float m = static_cast<float>(mean[channel]), s = static_cast<float>(inv_std[channel]);
      Out* to = dst + channel * channel_step + i;
#if defined(__AVX512F__)
      if (count == 16 || spill)
        store(to, normalise(widen(bytes), m, s));
      else
        store(to, normalise(widen(bytes), m, s), first(count));
#else
      if (count == 16) {
        store(to, normalise(widen(bytes), m, s));
        store(to + 8, normalise(widen(_mm_srli_si128(bytes, 8)), m, s));
      } else {
        alignas(16) uint8_t plane[16];
        _mm_store_si128(reinterpret_cast<__m128i*>(plane), bytes);
        normalise_run(plane, to, count, m, s, spill);
      }
#endif
    }
  }
}

#endif

}  // namespace
}  // namespace jepa
