// Storage types bf16 and fp16 as plain 16-bit integers, with exact conversions that vectorise where the ISA allows.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#if defined(__CUDACC__)
#define JEPA_HOST_DEVICE __host__ __device__
#else
#define JEPA_HOST_DEVICE
#endif

namespace jepa {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

// Unnamed, so that every translation unit keeps its own copy: files are compiled for different instruction sets, and a linker that
// merged them could hand AVX-512 code to a processor without it.
namespace {

JEPA_HOST_DEVICE inline uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
#endif
}

JEPA_HOST_DEVICE inline float bits_float(uint32_t u) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(u);
#else
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
#endif
}

JEPA_HOST_DEVICE inline float to_float(bf16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }

// Round to nearest, ties to even; NaN stays a (quiet) NaN.
JEPA_HOST_DEVICE inline bf16 to_bf16(float x) {
  const uint32_t u = float_bits(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
  return bf16{static_cast<uint16_t>(is_nan ? ((u >> 16) | 0x40u) : rounded)};
}

// Adds 16 uniformly random bits below the kept mantissa, then truncates: the expectation is x. Infinities and NaN are kept.
JEPA_HOST_DEVICE inline bf16 to_bf16_stochastic(float x, uint32_t random16) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7f800000u) == 0x7f800000u) return to_bf16(x);
  return bf16{static_cast<uint16_t>((u + (random16 & 0xffffu)) >> 16)};
}

#if defined(__F16C__) && !defined(__CUDACC__)
inline float to_float(fp16 x) { return _cvtsh_ss(x.bits); }
inline fp16 to_fp16(float x) { return fp16{static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))}; }
#else
JEPA_HOST_DEVICE inline float to_float(fp16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 0x1fu) return bits_float(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return bits_float(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24, exact
  return bits_float(sign | float_bits(magnitude));
}

// Round to nearest, ties to even, through the float adder for subnormals.
JEPA_HOST_DEVICE inline fp16 to_fp16(float x) {
  const uint32_t u = float_bits(x);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return fp16{static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return fp16{static_cast<uint16_t>(sign | 0x7c00u)};  // rounds past 65504
  if (magnitude < 0x38800000u) {  // below 2^-14: the sum with 0.5 leaves the rounded subnormal in the low bits
    const float shifted = bits_float(magnitude) + 0.5f;
    return fp16{static_cast<uint16_t>(sign | (float_bits(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return fp16{static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}
#endif

JEPA_HOST_DEVICE inline float to_float(float x) { return x; }
JEPA_HOST_DEVICE inline double to_float(double x) { return x; }

template <typename T>
struct Cast;
template <>
struct Cast<float> {
  JEPA_HOST_DEVICE static float from(float x) { return x; }
};
template <>
struct Cast<double> {
  JEPA_HOST_DEVICE static double from(double x) { return x; }
};
template <>
struct Cast<bf16> {
  JEPA_HOST_DEVICE static bf16 from(float x) { return to_bf16(x); }
};
template <>
struct Cast<fp16> {
  JEPA_HOST_DEVICE static fp16 from(float x) { return to_fp16(x); }
};

}  // namespace
}  // namespace jepa
