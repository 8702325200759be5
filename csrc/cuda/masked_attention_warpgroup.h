// What a block of the attention forward does on compute capability 9.0, thread by thread: one thread has the copy engine bring keys and
// values into a ring of slots, and each warpgroup multiplies them with 64 queries of its own. See masked_attention_rows.h for the Machine.
#pragma once

#include <cstdint>

#include "masked_attention_rows.h"

namespace jepa {
namespace {

constexpr int kGroupThreads = 128;
constexpr int kProcessorRegisters = 65536;

// `kGroups` warpgroups of 64 queries each, and one for the copies. A row of channels lies in one or two parts, each as wide as a
// swizzle pattern: 32 channels, 64, 64 and 16 of 80, 64 and 32 of 88, of which the last eight are zeros.
template <int kHeadDim_, int kGroups_, int kKeys_, int kBlocksPerProcessor_>
struct WarpgroupShape : HeadShape<kHeadDim_> {
  using HeadShape<kHeadDim_>::kHeadDim;
  static constexpr int kGroups = kGroups_, kKeys = kKeys_, kBlocksPerProcessor = kBlocksPerProcessor_, kStages = 4;
  static constexpr int kRowTiles = 1, kRows = 64;  // of one warpgroup
  static constexpr int kBlockRows = kGroups * kRows, kThreads = (kGroups + 1) * kGroupThreads;
  static constexpr int kFirst = kHeadDim < 64 ? kHeadDim : 64, kRest = kHeadDim - kFirst;
  static constexpr int kSecond = kRest == 0 ? 0 : kRest <= 16 ? 16 : 32, kWidth = kFirst + kSecond;
  static constexpr int kSumTiles = kWidth / 8;
  static constexpr int kFirstElements = kKeys * kFirst, kSlotElements = kKeys * kWidth, kSlotBytes = 2 * kSlotElements;
  static constexpr int kRingElements = kStages * kSlotElements, kQueryElements = kBlockRows * kHeadDim;
  static constexpr int kAlignment = 1024;  // of the widest swizzle pattern
  static constexpr int kSharedBytes = kAlignment + 2 * (kRingElements + kQueryElements) + (2 * kStages + 1) * 8;
  // Registers of a thread: what a block starts with, and how its warpgroups share them once their roles are known. Together they may not
  // hold more than at the start, or the raise would wait for ever.
  static constexpr int kStartRegisters = kProcessorRegisters / (kThreads * kBlocksPerProcessor) / 8 * 8, kCopyRegisters = 24;
  static constexpr int kShare = ((kGroups + 1) * kStartRegisters - kCopyRegisters) / kGroups / 8 * 8;
  static constexpr int kProductRegisters = kShare < 240 ? kShare : 240;
  static_assert((kFirst == 32 || kFirst == 64) && kRest <= 32, "parts as wide as a swizzle pattern");
  static_assert(kSlotBytes % kAlignment == 0 && 2 * kFirstElements % kAlignment == 0, "every part starts where its pattern does");
};

// Blocks of 64 queries, several on a multiprocessor, for sequences of which larger blocks would leave much idle; blocks of 192, which
// read keys and values a third as often, for longer ones. With as many keys a step as registers hold: no spill, no product that waits for
// the one before.
template <int kHeadDim>
struct WarpgroupShapes {
  using Small = WarpgroupShape<kHeadDim, 1, 64, kHeadDim == 88 ? 2 : 3>;
  using Large = WarpgroupShape<kHeadDim, 3, kHeadDim == 88 ? 64 : kHeadDim == 32 ? 128 : 96, 1>;
  static constexpr int kSmallUpTo = 640;  // queries of the longest sequence
};

// A tile of rows of `bytes` (32, 64 or 128) each in their swizzle pattern, as the products take it: address and the distance of eight rows
// from the next, in units of 16 bytes. Further distances are implied by the pattern, whichever of the two dimensions is contiguous.
JEPA_HOST_DEVICE inline uint64_t rows_descriptor(uint32_t shared_address, int bytes) {
  const uint64_t pattern = bytes == 128 ? 1 : bytes == 64 ? 2 : 3;
  return static_cast<uint64_t>((shared_address & 0x3ffffu) >> 4) | (uint64_t{1} << 16) |
         (static_cast<uint64_t>(8 * bytes / 16) << 32) | (pattern << 62);
}

// A part of the rows as the copy engine sees it: (channel, token, head, batch), innermost first, and the box of one copy.
struct RowsPart {
  int sizes[4];
  int64_t strides[3];  // bytes, from the tokens on
  int box[4];
};
template <typename Shape>
RowsPart rows_part(const MaskedAttentionCall& call, const HeadRows& rows, int channels) {
  // A dimension of one step never uses its stride, which all the same must be one that the engine takes.
  const auto stride = [](int64_t elements, int size) { return size == 1 ? 16 : 2 * elements; };
  return {{call.head_dim, call.key_len, call.heads, call.batch},
          {stride(rows.row_stride, call.key_len), stride(rows.head_stride, call.heads), stride(rows.batch_stride, call.batch)},
          {channels, Shape::kKeys, 1, 1}};
}

// The engine's maps of keys and values, one for each part.
template <typename Map>
struct KeyValueMaps {
  Map keys[2], values[2];
};
template <typename Shape, typename Map, typename Make>
KeyValueMaps<Map> key_value_maps(const MaskedAttentionCall& call, Make make) {
  KeyValueMaps<Map> maps{};
  if (call.key_len == 0) return maps;  // never read
  const int channels[2] = {Shape::kFirst, Shape::kSecond};
  for (int part = 0; part < (Shape::kSecond > 0 ? 2 : 1); ++part) {
    maps.keys[part] = make(call.k.data, rows_part<Shape>(call, call.k, channels[part]));
    maps.values[part] = make(call.v.data, rows_part<Shape>(call, call.v, channels[part]));
  }
  return maps;
}

template <typename Machine, typename Value, typename Shape>
struct WarpgroupAttention {
  using Rows = AttentionRows<Machine, Value, Shape>;
  using Maps = KeyValueMaps<typename Machine::TensorMap>;
  template <int kColumns>
  using Sums = typename Rows::template Sums<kColumns>;
  static constexpr int kKeyColumns = Rows::kKeyColumns, kKeySteps = Shape::kKeys / 16;

  // The ring: entry after entry takes the next slot, and each slot has a barrier that says it is full and one that says it is free.
  // Keys run one tile ahead of values: K0, K1, V0, K2, V1, ..., the last V, for which one more barrier says that it is cleared.
  struct Ring {
    uint16_t* slots;
    uint32_t full, empty, cleared;

    JEPA_DEVICE explicit Ring(uint16_t* shared)
        : slots(shared),
          full(Machine::shared_address(shared + Shape::kRingElements + Shape::kQueryElements)),
          empty(full + 8 * Shape::kStages),
          cleared(empty + 8 * Shape::kStages) {}
    JEPA_DEVICE uint16_t* slot(int entry) const { return slots + entry % Shape::kStages * Shape::kSlotElements; }
    JEPA_DEVICE uint32_t full_of(int entry) const { return full + entry % Shape::kStages * 8; }
    JEPA_DEVICE uint32_t empty_of(int entry) const { return empty + entry % Shape::kStages * 8; }
    JEPA_DEVICE static uint32_t round(int entry) { return entry / Shape::kStages & 1; }

    JEPA_DEVICE void init() const {
      for (int entry = 0; entry < Shape::kStages; ++entry) {
        Machine::init_barrier(full_of(entry), 1);
        Machine::init_barrier(empty_of(entry), 4 * Shape::kGroups);  // every warp that reads it
      }
      Machine::init_barrier(cleared, kGroupThreads);
      Machine::fence_barrier_init();
    }
    // The entry's slot, as soon as it has arrived.
    JEPA_DEVICE uint32_t take(int entry) const {
      Machine::wait(full_of(entry), round(entry));
      return Machine::shared_address(slot(entry));
    }
    JEPA_DEVICE void give_back(int entry, int lane) const {
      if (lane == 0) Machine::arrive(empty_of(entry));
    }
  };

  const MaskedAttentionCall& call;
  const Rows rows;
  const Ring ring;
  uint16_t* const tile;  // of this warpgroup's queries, and then of its results
  const int group;

  JEPA_DEVICE WarpgroupAttention(const MaskedAttentionCall& call_, const BlockRange& range, uint16_t* shared, int group_)
      : call(call_),
        rows(call_, range),
        ring(shared),
        tile(shared + Shape::kRingElements + group_ * Shape::kRows * Shape::kHeadDim),
        group(group_) {}

  // The copying thread: `tiles` tiles of keys and of values.
  JEPA_DEVICE static void bring(const Maps& maps, const Ring& ring, const BlockRange& range, int tiles) {
    int entry = 0;
    const auto next = [&](const typename Machine::TensorMap(&parts)[2], int index) {
      const uint32_t to = Machine::shared_address(ring.slot(entry)), full = ring.full_of(entry);
      const int token = range.first + index * Shape::kKeys;
      Machine::wait(ring.empty_of(entry), ring.round(entry) ^ 1);
      Machine::arrive_expecting(full, Shape::kSlotBytes);
      Machine::copy_tile(parts[0], to, full, 0, token, range.head, range.batch);
      if constexpr (Shape::kSecond > 0)
        Machine::copy_tile(parts[1], to + 2 * Shape::kFirstElements, full, Shape::kFirst, token, range.head, range.batch);
      ++entry;
    };
    next(maps.keys, 0);
    for (int index = 1; index < tiles; ++index) {
      next(maps.keys, index);
      next(maps.values, index - 1);
    }
    next(maps.values, tiles - 1);
  }

  // scores = queries @ keys^T
  JEPA_DEVICE static void multiply_keys(Sums<kKeyColumns>& scores, const typename Rows::Queries& queries, uint32_t keys) {
    constexpr int kFirstSteps = Shape::kFirst / 16;
    const uint64_t first = rows_descriptor(keys, 2 * Shape::kFirst);
    const uint64_t second = rows_descriptor(keys + 2 * Shape::kFirstElements, 2 * Shape::kSecond);
    Machine::fence_products();
    JEPA_UNROLL
    for (int step = 0; step < Shape::kSteps; ++step) {  // 16 channels are 32 bytes: 2 units of the descriptor's address
      const uint64_t right = step < kFirstSteps ? first + 2 * step : second + 2 * (step - kFirstSteps);
      Machine::template multiply<Value, Shape::kKeys, false>(scores[0], queries.steps[0][step], right, step > 0);
    }
    if constexpr (Shape::kTail)  // and eight channels whose keys are zeros: it does not count what the queries hold there
      Machine::template multiply<Value, Shape::kKeys, false>(scores[0], queries.tail[0], second + 2 * (Shape::kSteps - kFirstSteps), true);
    Machine::commit_products();
  }

  // sums += weights @ values
  JEPA_DEVICE static void multiply_values(Sums<Shape::kSumTiles>& sums, const uint32_t (&weights)[kKeySteps][4], uint32_t values) {
    const uint64_t first = rows_descriptor(values, 2 * Shape::kFirst);
    const uint64_t second = rows_descriptor(values + 2 * Shape::kFirstElements, 2 * Shape::kSecond);
    Machine::fence_products();
    JEPA_UNROLL
    for (int step = 0; step < kKeySteps; ++step) {  // 16 rows of as many bytes as a unit has elements
      Machine::template multiply<Value, Shape::kFirst, true>(sums[0], weights[step], first + 2 * Shape::kFirst * step, true);
      if constexpr (Shape::kSecond > 0)
        Machine::template multiply<Value, Shape::kSecond, true>(sums[0] + Shape::kFirst / 8, weights[step], second + 2 * Shape::kSecond * step,
                                                                true);
    }
    Machine::commit_products();
  }

  // Values from row `first` of their last tile on become zeros. What keys hold that no query of the block sees must not matter, and a
  // weight of zero would keep their NaN.
  JEPA_DEVICE void clear_values(int entry, int first) const {
    uint16_t *const values = ring.slot(entry), *const second = values + Shape::kFirstElements;
    clear(values + first * Shape::kFirst, second);
    if constexpr (Shape::kSecond > 0) clear(second + first * Shape::kSecond, values + Shape::kSlotElements);
    Machine::fence_proxy_async();  // the products read what ordinary stores wrote
    Machine::arrive(ring.cleared);
  }

  JEPA_DEVICE void clear(uint16_t* from, const uint16_t* end) const {
    JEPA_ROLLED
    for (uint16_t* at = from + rows.thread * kChunk; at < end; at += kGroupThreads * kChunk) Machine::store_shared_16(at, Chunk{});
  }

  // `tiles` tiles pass, of which this warpgroup's queries see the first `own` ones; `end`: the first key that the block does not see;
  // `behind`: the first query behind the block's.
  JEPA_DEVICE void attend(int tiles, int own, int end, int behind) const {
    rows.store_queries(tile);
    Machine::synchronise_warpgroup(group);
    typename Rows::Queries queries;
    rows.load_queries(queries, tile);

    Sums<Shape::kSumTiles> sums;
    float row_max[1][2], row_sum[1][2];
    rows.begin(sums, row_max, row_sum);
    int entry = 0;
    if (own > 0) {
      const int unmasked = Machine::uniform(key_limit(call, rows.range.key_count, rows.range.row));
      Sums<kKeyColumns> scores;
      uint32_t weights[kKeySteps][4];
      float decay[1][2];
      const auto weigh = [&](int index) {
        if ((index + 1) * Shape::kKeys > unmasked) rows.hide(scores, index * Shape::kKeys);
        return rows.weigh(scores, row_max, row_sum, decay);
      };
      const auto keep_weights = [&] {
        JEPA_UNROLL
        for (int step = 0; step < kKeySteps; ++step) Rows::fragment(weights[step], scores[0], step);
      };

      const uint32_t first_keys = ring.take(entry);
      multiply_keys(scores, queries, first_keys);
      Machine::template wait_for_products<0>();
      Machine::template hold<kKeyColumns>(scores[0]);
      ring.give_back(entry++, rows.lane);
      weigh(0);
      keep_weights();
      uint32_t next = ring.take(entry);
      // The scores of a tile and the sums of the one before are multiplied together, and its softmax runs beside the latter.
      for (int index = 1; index < own; ++index, entry += 2) {
        multiply_keys(scores, queries, next);
        multiply_values(sums, weights, ring.take(entry + 1));
        Machine::template wait_for_products<1>();
        Machine::template hold<kKeyColumns>(scores[0]);
        ring.give_back(entry, rows.lane);
        const bool rises = weigh(index);
        // Taken here and not at the next turn's start: in straight code the assembler moves the wait for the sums ahead of the whole
        // softmax, but it leaves nearly all of that ahead of a loop, which this is until the slot is full.
        next = ring.take(entry + 2);
        Machine::template wait_for_products<0>();
        Machine::template hold<Shape::kSumTiles>(sums[0]);
        ring.give_back(entry + 1, rows.lane);
        if (rises) rows.shrink(sums, decay);
        keep_weights();
      }
      if (own < tiles) {  // keys that come before the last values
        ring.give_back(entry++, rows.lane);
        next = ring.take(entry);
      }
      if (own == tiles && tiles * Shape::kKeys > end) {
        // One warpgroup clears for all: that of the block's last query, which sees the last key.
        if (rows.range.row + Shape::kRows >= behind) clear_values(entry, end - (tiles - 1) * Shape::kKeys);
        Machine::wait(ring.cleared, 0);
      }
      multiply_values(sums, weights, next);
      Machine::template wait_for_products<0>();
      Machine::template hold<Shape::kSumTiles>(sums[0]);
      ring.give_back(entry++, rows.lane);
    }
    while (entry < 2 * tiles) pass(entry++);
    rows.store(tile, sums, row_max, row_sum);
  }

  // An entry that these queries do not see.
  JEPA_DEVICE void pass(int entry) const {
    ring.take(entry);
    ring.give_back(entry, rows.lane);
  }

  // A warpgroup without queries.
  JEPA_DEVICE void pass_all(int tiles) const {
    for (int entry = 0; entry < 2 * tiles; ++entry) pass(entry);
  }
};

// `shared` begins at a multiple of Shape::kAlignment.
template <typename Machine, typename Value, typename Shape>
JEPA_DEVICE void warpgroup_attention_block(const MaskedAttentionCall& call, const KeyValueMaps<typename Machine::TensorMap>& maps,
                                           uint16_t* shared, int64_t block, int blocks_a_head) {
  using Program = WarpgroupAttention<Machine, Value, Shape>;
  BlockRange range = block_range(call, block, blocks_a_head, Shape::kBlockRows);
  if (range.row >= range.query_count) return;
  if (range.leftover) return typename Program::Rows(call, range).store_zeros(Shape::kBlockRows, Shape::kThreads, blocks_a_head);

  const auto behind = [&](int row) { return row < range.query_count ? row : range.query_count; };
  const auto keys_seen = [&](int last) { return Machine::uniform(key_limit(call, range.key_count, last)); };
  const auto tiles_of = [](int keys) { return (keys + Shape::kKeys - 1) / Shape::kKeys; };
  const int block_behind = behind(range.row + Shape::kBlockRows), end = keys_seen(block_behind - 1), tiles = tiles_of(end);
  const typename Program::Ring ring(shared);
  if (Machine::thread() == 0) ring.init();
  Machine::synchronise();

  // Warpgroups take one path each. That the assembler knows it of every branch around products lets these run on by themselves.
  const int group = Machine::uniform(Machine::thread() / kGroupThreads);
  if (group == Shape::kGroups) {
    Machine::template release_registers<Shape::kCopyRegisters>();
    if (Machine::thread() % kGroupThreads == 0 && tiles > 0) Program::bring(maps, ring, range, tiles);
  } else {
    Machine::template claim_registers<Shape::kProductRegisters>();
    range.row += group * Shape::kRows;
    const Program program(call, range, shared, group);
    if (Machine::uniform(range.row < range.query_count))
      program.attend(tiles, tiles_of(keys_seen(behind(range.row + Shape::kRows) - 1)), end, block_behind);
    else
      program.pass_all(tiles);
  }
}

}  // namespace
}  // namespace jepa
