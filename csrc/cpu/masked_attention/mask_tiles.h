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

// visible[key * width + lane]: all ones where query first_query + lane may see key first_key + key. Lanes past the last query copy it.
inline void build_tile_mask(const AttentionProblem& p, int64_t first_query, int64_t width, int64_t first_key, uint32_t* visible) {
  for (int64_t lane = 0; lane < width; ++lane) {
    const int64_t query = smaller(first_query + lane, p.queries - 1);
    const int64_t limit = p.key_limit(query);
    for (int64_t key = 0; key < kTileKeys; ++key) {
      bool attend = first_key + key < limit;
      if (attend && p.mask != nullptr) attend = p.mask[query * p.mask_row + (first_key + key) * p.mask_column] != 0;
      visible[key * width + lane] = attend ? 0xffffffffu : 0u;
    }
  }
}

}  // namespace
}  // namespace jepa
