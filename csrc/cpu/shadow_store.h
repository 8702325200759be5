// Low-precision copies of float32 values: rounded to nearest in a buffer, then written around the caches or through
// them.
#pragma once

#include <cstdint>
#include <cstring>

#include "jepa/float_types.h"
#include "jepa/tensor_view.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

constexpr int64_t kShadowBlock = 2048;  // elements; the buffers of one block stay in L1

#if defined(__AVX512F__)
constexpr int64_t kStreamWidth = 64;
inline void stream_vector(char* to, const char* from) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
#elif defined(__AVX2__)
constexpr int64_t kStreamWidth = 32;
inline void stream_vector(char* to, const char* from) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#endif

// Non-temporal stores need whole, aligned vectors: head and tail go the usual way.
inline void stream_copy(char* to, const char* from, int64_t bytes) {
#if defined(__AVX2__)
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kStreamWidth);
  const int64_t head = misaligned == 0 ? 0 : kStreamWidth - misaligned;
  if (bytes >= head + kStreamWidth) {
    memcpy(to, from, static_cast<size_t>(head));
    int64_t done = head;
    for (; done + kStreamWidth <= bytes; done += kStreamWidth) stream_vector(to + done, from + done);
    memcpy(to + done, from + done, static_cast<size_t>(bytes - done));
    return;
  }
#endif
  memcpy(to, from, static_cast<size_t>(bytes));
}

// Makes streamed stores visible to other threads before the caller's barrier.
inline void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// values: count <= kShadowBlock floats, written to elements [begin, begin + count) of a bf16 or fp16 tensor.
inline void store_shadow(void* shadow, DType dtype, int64_t begin, const float* values, int64_t count, bool stream) {
  char* to = static_cast<char*>(shadow) + 2 * begin;
  if (dtype == DType::kBFloat16) {
    bf16 rounded[kShadowBlock];
    for (int64_t i = 0; i < count; ++i) rounded[i] = to_bf16(values[i]);
    stream ? stream_copy(to, reinterpret_cast<const char*>(rounded), 2 * count)
           : static_cast<void>(memcpy(to, rounded, static_cast<size_t>(2 * count)));
  } else {
    fp16 rounded[kShadowBlock];
    for (int64_t i = 0; i < count; ++i) rounded[i] = to_fp16(values[i]);
    stream ? stream_copy(to, reinterpret_cast<const char*>(rounded), 2 * count)
           : static_cast<void>(memcpy(to, rounded, static_cast<size_t>(2 * count)));
  }
}

}  // namespace
}  // namespace jepa
