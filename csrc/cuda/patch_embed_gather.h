// Pixels to the left operand, eight columns at a time, and results to tokens: what both kernels of the patch embedding share.
#pragma once

#include <cstdint>

#include "device_source.h"
#include "patch_embed_tile.h"

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
JEPA_DEVICE void put_raw(RawChunk<Pixel>& raw, int lane, Pixel value) {
  if constexpr (sizeof(Pixel) == 4)
    raw.word[lane] = float_bits(value);
  else if constexpr (sizeof(Pixel) == 2)
    raw.word[lane / 2] |= static_cast<uint32_t>(value.bits) << (16 * (lane % 2));
  else
    raw.word[lane / 4] |= static_cast<uint32_t>(value) << (8 * (lane % 4));
}

template <typename Machine, typename Pixel>
JEPA_DEVICE float pixel_of(const RawChunk<Pixel>& raw, int lane, bool pixels_are_bf16) {
  if constexpr (sizeof(Pixel) == 4) return bits_float(raw.word[lane]);
  if constexpr (sizeof(Pixel) == 1) return static_cast<float>((raw.word[lane / 4] >> (8 * (lane % 4))) & 0xffu);
  const uint16_t bits = static_cast<uint16_t>(raw.word[lane / 2] >> (16 * (lane % 2)));
  return pixels_are_bf16 ? to_float(bf16{bits}) : Machine::value(fp16{bits});
}

// Loads the chunk at column `k` of the patch at `origin`; zeros for a patch out of range and for columns from `columns` on.
template <typename Machine, typename Pixel>
JEPA_DEVICE RawChunk<Pixel> load_chunk(const Pixel* origin, bool inside, int k, int columns, bool adjacent,
                                       const PatchColumn* __restrict__ table) {
  RawChunk<Pixel> raw{};
  if (!inside || k >= columns) return raw;
  if (adjacent) {
    const Pixel* first = origin + Machine::load(&table[k].offset);
    if constexpr (sizeof(Pixel) == 1) {
      const auto words = Machine::load_8(first);
      raw.word[0] = words.x, raw.word[1] = words.y;
    } else {
      JEPA_UNROLL
      for (int part = 0; part < static_cast<int>(sizeof(Pixel)) / 2; ++part) {
        const Chunk words = Machine::load_16(reinterpret_cast<const Chunk*>(first) + part);
        JEPA_UNROLL
        for (int i = 0; i < 4; ++i) raw.word[4 * part + i] = words.word[i];
      }
    }
    return raw;
  }
  JEPA_UNROLL
  for (int lane = 0; lane < kChunk; ++lane)
    if (k + lane < columns) put_raw(raw, lane, Machine::load(origin + Machine::load(&table[k + lane].offset)));
  return raw;
}

// How the pixels of a column are normalised.
struct Moments {
  float mean, inv_std;
};

// (x - mean) / std in float32, rounded once: the definition of the operator.
template <typename Machine, typename Value, typename Pixel>
JEPA_DEVICE Chunk normalised_chunk(const RawChunk<Pixel>& raw, const Moments (&moments)[kChunk], bool pixels_are_bf16) {
  Chunk chunk;
  JEPA_UNROLL
  for (int pair = 0; pair < 4; ++pair) {
    const Moments a = moments[2 * pair], b = moments[2 * pair + 1];
    chunk.word[pair] =
        Machine::template pair<Value>((pixel_of<Machine>(raw, 2 * pair, pixels_are_bf16) - a.mean) * a.inv_std,
                                      (pixel_of<Machine>(raw, 2 * pair + 1, pixels_are_bf16) - b.mean) * b.inv_std);
  }
  return chunk;
}

template <typename Machine>
JEPA_DEVICE void load_moments(Moments (&moments)[kChunk], const PatchColumn* __restrict__ table, int k) {
  JEPA_UNROLL
  for (int lane = 0; lane < kChunk; ++lane) moments[lane] = {Machine::load(&table[k + lane].mean), Machine::load(&table[k + lane].inv_std)};
}

// The patch of a row of the result, -1 where it has none: beyond the last row, or an id out of range.
template <typename Machine>
JEPA_DEVICE int64_t patch_of(const PatchEmbedCall& call, int64_t row) {
  if (row >= call.num_rows) return -1;
  const int64_t patch = call.rows == nullptr ? row : Machine::load(call.rows + row);
  return patch >= 0 && patch < call.geometry.batch * call.geometry.tokens() ? patch : -1;
}

template <typename Machine>
JEPA_DEVICE float value_at(const void* values, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat32:
      return Machine::load(static_cast<const float*>(values) + index);
    case DType::kBFloat16:
      return Machine::value(Machine::load(static_cast<const bf16*>(values) + index));
    default:
      return Machine::value(Machine::load(static_cast<const fp16*>(values) + index));
  }
}

// Tokens of a tile: sums in shared memory + bias + position, NaN where the id was out of range. Neighbouring threads write
// neighbouring 16 or 32 bytes of a row.
template <typename Machine, typename Value, int kRows, int kColumns, int kThreads>
JEPA_DEVICE void store_tokens(const PatchEmbedCall& call, const float* sums, const int64_t* patches, int64_t first_row,
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
    JEPA_UNROLL
    for (int lane = 0; lane < kChunk; ++lane) {
      if (!whole && d + lane >= call.width) continue;
      values[lane] = sum[lane];
      if (call.bias != nullptr) values[lane] += value_at<Machine>(call.bias, call.weight_dtype, d + lane);
      if (call.pos_embed != nullptr) values[lane] += value_at<Machine>(call.pos_embed, call.pos_dtype, place + lane);
      if (patch < 0) values[lane] = bits_float(0x7fc00000u);
    }
    if (call.out_dtype == DType::kFloat32) {
      float* out = static_cast<float*>(call.out) + at;
      if (whole) {
        JEPA_UNROLL
        for (int part = 0; part < 2; ++part) {
          const float* const four = values + 4 * part;
          Machine::store_16(out + 4 * part, {{float_bits(four[0]), float_bits(four[1]), float_bits(four[2]), float_bits(four[3])}});
        }
      } else {
        JEPA_UNROLL
        for (int lane = 0; lane < kChunk; ++lane)
          if (d + lane < call.width) Machine::store(out + lane, values[lane]);
      }
    } else {
      uint16_t* out = static_cast<uint16_t*>(call.out) + at;
      Chunk words;
      JEPA_UNROLL
      for (int pair = 0; pair < 4; ++pair) words.word[pair] = Machine::template pair<Value>(values[2 * pair], values[2 * pair + 1]);
      if (whole) {
        Machine::store_16(out, words);
      } else {
        JEPA_UNROLL
        for (int lane = 0; lane < kChunk; ++lane)
          if (d + lane < call.width) Machine::store(out + lane, static_cast<uint16_t>(words.word[lane / 2] >> (16 * (lane % 2))));
      }
    }
  }
}

}  // namespace
}  // namespace jepa
