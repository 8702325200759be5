// Packing and unpacking of one patch, compiled once for each instruction set.
// No standard containers here: their inline functions would be merged across instruction sets by the linker.
#pragma once

#include <cstdint>
#include <type_traits>

#include "jepa/patch_embed.h"
#include "patch_embed_lanes.h"

namespace jepa {
namespace {

// Pixels whose columns are not adjacent in memory, for instance a channel of a (..., H, W, C) frame of floats.
template <typename Pixel, typename Out, typename A>
inline void normalise_run_strided(const Pixel* src, int64_t stride, Out* dst, int64_t n, A mean, A inv_std) {
  for (int64_t i = 0; i < n; ++i) dst[i] = Cast<Out>::from((static_cast<A>(to_float(src[i * stride])) - mean) * inv_std);
}

template <typename Pixel, typename Out>
inline void pack_run(const PatchGrid& g, const Pixel* src, Out* dst, double mean, double inv_std, bool spill) {
  constexpr bool kDouble = std::is_same<Out, double>::value;
  using A = typename std::conditional<kDouble, double, float>::type;
  if constexpr (!kDouble && !std::is_same<Pixel, double>::value) {
    if (g.stride_w == 1) return normalise_run(src, dst, g.patch_w, static_cast<float>(mean), static_cast<float>(inv_std), spill);
  }
  normalise_run_strided<Pixel, Out, A>(src, g.stride_w, dst, g.patch_w, static_cast<A>(mean), static_cast<A>(inv_std));
}

// Whether a run of `width` at `offset` may spill over: what follows within `size` is written later, and is longer than a spill.
inline bool can_spill(int64_t offset, int64_t width, int64_t size) { return offset + width + 16 <= size; }

template <typename Pixel, typename Out>
void pack_rows_typed(const PackTask& task, int64_t begin, int64_t end) {
  const PatchGrid& g = task.grid;
  const int64_t row_size = g.row_size();
  const auto origin = [&](int64_t row) {
    return static_cast<const Pixel*>(task.pixels) + g.origin(task.rows != nullptr ? task.rows[row] : task.first_row + row);
  };
  const Pixel* next = begin < end ? origin(begin) : nullptr;
  for (int64_t row = begin; row < end; ++row) {
    const Pixel* patch = next;
    // A patch touches a new line every few bytes, a pattern that hardware prefetchers give up on: ask for the next patch's lines.
    if (row + 1 < end) next = origin(row + 1);
    const int64_t ahead = next - patch;
    Out* const row_start = static_cast<Out*>(task.out) + row * task.out_stride;
    Out* out = row_start;
#if defined(__AVX2__)
    if constexpr (std::is_same<Pixel, uint8_t>::value && !std::is_same<Out, double>::value) {
      if (g.channels == 3 && g.stride_c == 1 && g.stride_w == 3) {  // decoder order
        const int64_t channel_step = g.patch_t * g.patch_h * g.patch_w;
        for (int64_t t = 0; t < g.patch_t; ++t)
          for (int64_t y = 0; y < g.patch_h; ++y, out += g.patch_w) {
            const Pixel* run = patch + t * g.stride_t + y * g.stride_h;
            __builtin_prefetch(run + ahead);
            const bool spill = can_spill(out - row_start, g.patch_w, channel_step);
            normalise_run_rgb(run, out, channel_step, g.patch_w, task.mean, task.inv_std, spill);
          }
        continue;
      }
    }
#endif
    for (int64_t c = 0; c < g.channels; ++c)
      for (int64_t t = 0; t < g.patch_t; ++t) {
        const Pixel* frame = patch + c * g.stride_c + t * g.stride_t;
        for (int64_t y = 0; y < g.patch_h; ++y, out += g.patch_w) {
          const Pixel* run = frame + y * g.stride_h;
          __builtin_prefetch(run + ahead);
          pack_run(g, run, out, task.mean[c], task.inv_std[c], can_spill(out - row_start, g.patch_w, row_size));
        }
      }
  }
}

template <typename Out>
void pack_rows_to(const PackTask& task, int64_t begin, int64_t end) {
  switch (task.pixel_dtype) {
    case DType::kUInt8:
      return pack_rows_typed<uint8_t, Out>(task, begin, end);
    case DType::kFloat64:
      return pack_rows_typed<double, Out>(task, begin, end);
    case DType::kBFloat16:
      return pack_rows_typed<bf16, Out>(task, begin, end);
    case DType::kFloat16:
      return pack_rows_typed<fp16, Out>(task, begin, end);
    default:
      return pack_rows_typed<float, Out>(task, begin, end);
  }
}

inline void pack_rows(const PackTask& task, int64_t begin, int64_t end) {
  switch (task.out_dtype) {
    case DType::kFloat64:
      return pack_rows_to<double>(task, begin, end);
    case DType::kBFloat16:
      return pack_rows_to<bf16>(task, begin, end);
    case DType::kFloat16:
      return pack_rows_to<fp16>(task, begin, end);
    default:
      return pack_rows_to<float>(task, begin, end);
  }
}

template <typename Packed, typename Pixel>
void unpack_patches_typed(const UnpackTask& task, int64_t begin, int64_t end) {
  using A = decltype(to_float(Packed{}));
  constexpr int64_t kRun = 64;  // columns accumulated at a time
  const PatchGrid& g = task.grid;
  for (int64_t patch = begin; patch < end; ++patch) {
    const int64_t first_row = task.starts[patch], last_row = task.starts[patch + 1];
    int64_t k = 0;
    for (int64_t c = 0; c < g.channels; ++c)
      for (int64_t t = 0; t < g.patch_t; ++t)
        for (int64_t y = 0; y < g.patch_h; ++y) {
          Pixel* line = static_cast<Pixel*>(task.pixels) + g.origin(patch) + c * g.stride_c + t * g.stride_t + y * g.stride_h;
          for (int64_t x = 0; x < g.patch_w; x += kRun) {
            const int64_t count = g.patch_w - x < kRun ? g.patch_w - x : kRun;
            A sum[kRun] = {};
            for (int64_t i = first_row; i < last_row; ++i) {
              const Packed* row = static_cast<const Packed*>(task.packed) + task.order[i] * task.packed_stride + k + x;
              for (int64_t j = 0; j < count; ++j) sum[j] += to_float(row[j]);
            }
            const A scale = static_cast<A>(task.inv_std[c]);
            for (int64_t j = 0; j < count; ++j) line[(x + j) * g.stride_w] = Cast<Pixel>::from(sum[j] * scale);
          }
          k += g.patch_w;
        }
  }
}

template <typename Packed>
void unpack_patches_from(const UnpackTask& task, int64_t begin, int64_t end) {
  switch (task.pixel_dtype) {
    case DType::kFloat64:
      return unpack_patches_typed<Packed, double>(task, begin, end);
    case DType::kBFloat16:
      return unpack_patches_typed<Packed, bf16>(task, begin, end);
    case DType::kFloat16:
      return unpack_patches_typed<Packed, fp16>(task, begin, end);
    default:
      return unpack_patches_typed<Packed, float>(task, begin, end);
  }
}

inline void unpack_patches(const UnpackTask& task, int64_t begin, int64_t end) {
  switch (task.packed_dtype) {
    case DType::kFloat64:
      return unpack_patches_from<double>(task, begin, end);
    case DType::kBFloat16:
      return unpack_patches_from<bf16>(task, begin, end);
    case DType::kFloat16:
      return unpack_patches_from<fp16>(task, begin, end);
    default:
      return unpack_patches_from<float>(task, begin, end);
  }
}

}  // namespace
}  // namespace jepa
