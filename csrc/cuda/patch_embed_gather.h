// Pixels to the left operand, eight columns at a time, and results to tokens: what both kernels of the patch embedding share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "patch_embed_tile.h"
#include "warp_instructions.h"

namespace jepa {
namespace {

// Stands for both 16-bit pixel types: which one it is, is asked at run time, where the question costs nothing.
struct Half16 {
  uint16_t bits;
};

// Eight pixels as they lie in memory.
template <typename Pixel>
struct RawChunk {
  uint32_t word[2 * sizeof(Pixel)];
};

template <typename Pixel>
__device__ inline void put_raw(RawChunk<Pixel>& raw, int lane, Pixel value) {
  if constexpr (sizeof(Pixel) == 4)
    raw.word[lane] = __float_as_uint(value);
  else if constexpr (sizeof(Pixel) == 2)
    raw.word[lane / 2] |= static_cast<uint32_t>(value.bits) << (16 * (lane % 2));
  else
    raw.word[lane / 4] |= static_cast<uint32_t>(value) << (8 * (lane % 4));
}

template <typename Pixel>
__device__ inline float pixel_of(const RawChunk<Pixel>& raw, int lane, bool pixels_are_bf16) {
  if constexpr (sizeof(Pixel) == 4) return __uint_as_float(raw.word[lane]);
  if constexpr (sizeof(Pixel) == 1) return static_cast<float>((raw.word[lane / 4] >> (8 * (lane % 4))) & 0xffu);
  const uint16_t bits = static_cast<uint16_t>(raw.word[lane / 2] >> (16 * (lane % 2)));
  return pixels_are_bf16 ? __uint_as_float(static_cast<uint32_t>(bits) << 16) : __half2float(__ushort_as_half(bits));
}

// Loads the chunk at column `k` of the patch at `origin`; zeros for a patch out of range and for columns from `columns` on.
template <typename Pixel>
__device__ inline RawChunk<Pixel> load_chunk(const Pixel* origin, bool inside, int k, int columns, bool adjacent,
                                             const PatchColumn* __restrict__ table) {
  RawChunk<Pixel> raw{};
  if (!inside || k >= columns) return raw;
  if (adjacent) {
    const Pixel* first = origin + table[k].offset;
    if constexpr (sizeof(Pixel) == 1) {
      const uint2 words = __ldg(reinterpret_cast<const uint2*>(first));
      raw.word[0] = words.x, raw.word[1] = words.y;
    } else {
#pragma unroll
      for (int part = 0; part < static_cast<int>(sizeof(Pixel)) / 2; ++part) {
        const uint4 words = __ldg(reinterpret_cast<const uint4*>(first) + part);
        raw.word[4 * part] = words.x, raw.word[4 * part + 1] = words.y;
        raw.word[4 * part + 2] = words.z, raw.word[4 * part + 3] = words.w;
      }
    }
    return raw;
  }
#pragma unroll
  for (int lane = 0; lane < kChunk; ++lane)
    if (k + lane < columns) put_raw(raw, lane, origin[table[k + lane].offset]);
  return raw;
}

// (x - mean) / std in float32, rounded once: the definition of the operator.
template <typename Value, typename Pixel>
__device__ inline uint4 normalised_chunk(const RawChunk<Pixel>& raw, const float2 (&moments)[kChunk], bool pixels_are_bf16) {
  uint32_t words[4];
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const float2 a = moments[2 * pair], b = moments[2 * pair + 1];
    words[pair] = rounded_pair<Value>((pixel_of(raw, 2 * pair, pixels_are_bf16) - a.x) * a.y,
                                      (pixel_of(raw, 2 * pair + 1, pixels_are_bf16) - b.x) * b.y);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ inline void load_moments(float2 (&moments)[kChunk], const PatchColumn* __restrict__ table, int k) {
#pragma unroll
  for (int lane = 0; lane < kChunk; ++lane) moments[lane] = make_float2(table[k + lane].mean, table[k + lane].inv_std);
}

// The patch of a row of the result, -1 where it has none: beyond the last row, or an id out of range.
__device__ inline int64_t patch_of(const PatchEmbedCall& call, int64_t row) {
  if (row >= call.num_rows) return -1;
  const int64_t patch = call.rows == nullptr ? row : call.rows[row];
  return patch >= 0 && patch < call.geometry.batch * call.geometry.tokens() ? patch : -1;
}

__device__ inline float value_at(const void* values, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(values)[index];
    case DType::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(values)[index]);
    default:
      return __half2float(static_cast<const __half*>(values)[index]);
  }
}

// Tokens of a tile: sums in shared memory + bias + position, NaN where the id was out of range. Neighbouring threads write
// neighbouring 16 or 32 bytes of a row.
template <typename Value, int kRows, int kColumns, int kThreads>
__device__ inline void store_tokens(const PatchEmbedCall& call, const float* sums, const int64_t* patches, int64_t first_row,
                                    int first_column, int thread) {
  constexpr int kAcross = kColumns / kChunk;
  const bool whole = call.width % kChunk == 0;
  for (int item = thread; item < kRows * kAcross; item += kThreads) {
    const int row = item / kAcross, column = item % kAcross * kChunk, d = first_column + column;
    if (first_row + row >= call.num_rows || d >= call.width) continue;
    const float* sum = sums + row * result_stride(kColumns) + column;
    const int64_t patch = patches[row], at = (first_row + row) * call.width + d;
    const int64_t place = patch < 0 ? 0 : patch % call.geometry.tokens() * call.width + d;
    float values[kChunk] = {};
#pragma unroll
    for (int lane = 0; lane < kChunk; ++lane) {
      if (!whole && d + lane >= call.width) continue;
      values[lane] = sum[lane];
      if (call.bias != nullptr) values[lane] += value_at(call.bias, call.weight_dtype, d + lane);
      if (call.pos_embed != nullptr) values[lane] += value_at(call.pos_embed, call.pos_dtype, place + lane);
      if (patch < 0) values[lane] = __int_as_float(0x7fc00000);
    }
    if (call.out_dtype == DType::kFloat32) {
      float* out = static_cast<float*>(call.out) + at;
      if (whole) {
        reinterpret_cast<float4*>(out)[0] = make_float4(values[0], values[1], values[2], values[3]);
        reinterpret_cast<float4*>(out)[1] = make_float4(values[4], values[5], values[6], values[7]);
      } else {
#pragma unroll
        for (int lane = 0; lane < kChunk; ++lane)
          if (d + lane < call.width) out[lane] = values[lane];
      }
    } else {
      uint16_t* out = static_cast<uint16_t*>(call.out) + at;
      uint32_t words[4];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) words[pair] = rounded_pair<Value>(values[2 * pair], values[2 * pair + 1]);
      if (whole) {
        *reinterpret_cast<uint4*>(out) = make_uint4(words[0], words[1], words[2], words[3]);
      } else {
#pragma unroll
        for (int lane = 0; lane < kChunk; ++lane)
          if (d + lane < call.width) out[lane] = static_cast<uint16_t>(words[lane / 2] >> (16 * (lane % 2)));
      }
    }
  }
}

}  // namespace
}  // namespace jepa
