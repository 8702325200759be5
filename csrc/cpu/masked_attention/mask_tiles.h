// Which tiles of scores are empty, full or partial, and the lane masks of the partial ones. Tiles are kTileKeys keys by a query block.
#pragma once

#include <cstring>

#include "layout.h"

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

enum class Tile : uint8_t { kEmpty, kPartial, kFull };

constexpr int kTileKeys = 8;

// Classifies the tiles of keys [key_begin, key_end) against queries [begin, end). `all` and `any` are scratch, one byte a key.
inline void classify_tiles(const AttentionProblem& p, int64_t begin, int64_t end, int64_t key_begin, int64_t key_end, Tile* tiles,
                           uint8_t* __restrict all, uint8_t* __restrict any) {
  const int64_t count = key_end - key_begin;
  if (p.mask != nullptr) {
    memset(all, 1, static_cast<size_t>(count));
    memset(any, 0, static_cast<size_t>(count));
    for (int64_t q = begin; q < end; ++q) {
      const uint8_t* row = p.mask + q * p.mask_row + key_begin * p.mask_column;
      if (p.mask_column == 1) {
        for (int64_t k = 0; k < count; ++k) {
          all[k] &= row[k];
          any[k] |= row[k];
        }
      } else {
        for (int64_t k = 0; k < count; ++k) {
          all[k] &= row[k * p.mask_column];
          any[k] |= row[k * p.mask_column];
        }
      }
      if (p.mask_row == 0) break;  // every query has this row
    }
  }
  const int64_t limit = p.key_limit(end - 1), full_limit = p.key_limit(begin);
  for (int64_t t = 0; t * kTileKeys < count; ++t) {
    const int64_t first = key_begin + t * kTileKeys;
    bool every = first + kTileKeys <= full_limit, some = first < limit;
    if (p.mask != nullptr && some) {
      uint8_t mask_all = 1, mask_any = 0;
      for (int64_t k = first; k < smaller(first + kTileKeys, key_end); ++k) {
        mask_all &= all[k - key_begin];
        mask_any |= any[k - key_begin];
      }
      every = every && mask_all != 0;
      some = mask_any != 0;
    }
    tiles[t] = !some ? Tile::kEmpty : every ? Tile::kFull : Tile::kPartial;
  }
}

// The number of keys that each lane's query may see, before any bool mask. Lanes past the last query copy it.
inline void fill_limits(const AttentionProblem& p, int64_t first_query, int64_t width, int32_t* limits) {
  for (int64_t lane = 0; lane < width; ++lane)
    limits[lane] = static_cast<int32_t>(p.key_limit(smaller(first_query + lane, p.queries - 1)));
}

// visible[key * width + lane]: all ones where query first_query + lane may see key first_key + key.
inline void build_tile_mask(const AttentionProblem& p, const int32_t* __restrict limits, int64_t first_query, int64_t width,
                            int64_t first_key, uint32_t* __restrict visible) {
  for (int64_t key = 0; key < kTileKeys; ++key) {
    const int32_t place = static_cast<int32_t>(first_key + key);
    uint32_t* row = visible + key * width;
    for (int64_t lane = 0; lane < width; ++lane) row[lane] = place < limits[lane] ? 0xffffffffu : 0u;
    if (p.mask == nullptr || place >= p.keys) continue;
    const uint8_t* column = p.mask + place * p.mask_column;
    for (int64_t lane = 0; lane < width; ++lane)
      if (column[smaller(first_query + lane, p.queries - 1) * p.mask_row] == 0) row[lane] = 0;
  }
}

}  // namespace
}  // namespace jepa
