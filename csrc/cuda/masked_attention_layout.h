// Which keys a block of queries visits, and where every value of its tiles lies. Plain arithmetic for host and device.
#pragma once

#include <cstdint>

#include "jepa/float_types.h"
#include "jepa/masked_attention_cuda.h"

namespace jepa {
namespace {

constexpr int kChunk = 8;  // channels a 16-byte access
constexpr int kAttentionWarps = 4;
constexpr int kAttentionThreads = 32 * kAttentionWarps;

// A row of kHeadDim 16-bit values.
template <int kHeadDim_>
struct HeadShape {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kChunks = kHeadDim / kChunk;
  static constexpr int kSteps = kHeadDim / 16;       // products of 16 channels,
  static constexpr bool kTail = kHeadDim % 16 != 0;  // and one of 8 where they leave some
  static constexpr int kColumnTiles = kHeadDim / 8;  // of the output
  // Threads beside each other take one row; of the 16 that a row of 10 or 11 chunks gets, some are idle, which costs less than
  // dividing by 10 or 11 would.
  static constexpr int kLanesPerRow = kChunks <= 4 ? 4 : kChunks <= 8 ? 8 : 16;
  static constexpr int kRowsPerPass = kAttentionThreads / kLanesPerRow;
  static_assert(kHeadDim % kChunk == 0 && kChunks <= 16, "a row has at most 16 chunks");
};

// A tile of such rows in shared memory, without padding, and the block of queries that works on it: each warp owns kRowTiles x 16
// queries.
template <int kHeadDim_, int kRowTiles_>
struct AttentionShape : HeadShape<kHeadDim_> {
  using HeadShape<kHeadDim_>::kHeadDim;
  static constexpr int kRowTiles = kRowTiles_, kSumTiles = kHeadDim / 8;
  static constexpr int kRows = kAttentionWarps * 16 * kRowTiles;
  // Keys a step. With 64 of them, scores, output and queries of 32 rows take more than the 255 registers of a thread at 64 channels (on
  // 10.0 and 12.0) and beyond (on all).
  static constexpr int kKeys = kRowTiles == 2 && kHeadDim > 32 ? 32 : 64;
  static constexpr int kTileElements = kKeys * kHeadDim;
  static constexpr int kStageElements = 2 * kTileElements;  // keys and values
  static constexpr int kQueryElements = kRows * kHeadDim;   // pass through the place of the second stage before it is needed
  static constexpr int kSharedBytes = 2 * (kStageElements + (kStageElements > kQueryElements ? kStageElements : kQueryElements));
  // What ptxas makes room for: 65536 registers for as many threads, without a spill on any architecture.
  static constexpr int kBlocksPerProcessor = kRowTiles == 2 || kHeadDim > 64 ? 2 : kHeadDim > 32 ? 3 : 4;
};

// Element of (row, chunk) in such a tile. A row of odd x 2^e chunks shifts the banks of the next by odd x 2^e: rows that would meet
// are told apart by exchanging chunks within groups of 2^e, so that any eight neighbouring rows lie in different banks.
template <int kHeadDim>
JEPA_HOST_DEVICE constexpr int head_element(int row, int chunk) {
  constexpr int kChunks = kHeadDim / kChunk;
  constexpr int kBits = kChunks % 8 == 0 ? 3 : kChunks % 4 == 0 ? 2 : kChunks % 2 == 0 ? 1 : 0, kMask = (1 << kBits) - 1;
  // Bits beyond the mask stand apart, so that they become the offset of an instruction where `chunk` is a constant plus a few bits.
  return row * kHeadDim + ((chunk & kMask) ^ ((row >> (3 - kBits)) & kMask)) * kChunk + (chunk & ~kMask) * kChunk;
}

// Row and chunk that a lane addresses when a warp loads four 8 x 8 matrices.
struct MatrixPlace {
  int row, chunk;
};
// 16 rows by 16 channels: rows first. Queries, and values (transposed as they are loaded).
JEPA_HOST_DEVICE inline MatrixPlace rows_first(int lane) { return {lane & 15, lane >> 4}; }
// 16 rows by 16 channels: channels first. Keys.
JEPA_HOST_DEVICE inline MatrixPlace channels_first(int lane) { return {(lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1}; }

// Queries of the longest sequence, and sequences: the grid's size.
inline int longest_sequence(const MaskedAttentionCall& call) { return call.cu_seqlens != nullptr ? call.max_seqlen : call.query_len; }
inline int grid_entries(const MaskedAttentionCall& call) { return call.cu_seqlens != nullptr ? call.num_sequences + 1 : call.batch; }

// Tiles of `rows` queries in the longest sequence; one at least, for the tokens that no sequence holds.
inline int64_t tiles_of(const MaskedAttentionCall& call, int rows) {
  const int64_t tiles = (static_cast<int64_t>(longest_sequence(call)) + rows - 1) / rows;
  return tiles > 0 ? tiles : 1;
}

inline int64_t blocks_of(const MaskedAttentionCall& call, int rows) {
  return call.query_len == 0 ? 0 : tiles_of(call, rows) * call.heads * grid_entries(call);
}

// What one block computes. Values read on the device are clamped to the tensors.
struct BlockRange {
  int head, batch;
  int first;                   // token of query 0 and of key 0, with cu_seqlens
  int row;                     // first query of the block
  int query_count, key_count;  // of the sequence
  bool leftover;               // tokens that no sequence holds: zeros
};

// Blocks of one head are neighbours, so that its keys and values stay in the L2 cache; the last, which in a frame-causal mask has
// the most keys, starts first. With cu_seqlens the last entry stands for the tokens after the last sequence.
JEPA_HOST_DEVICE inline BlockRange block_range(const MaskedAttentionCall& call, int64_t block, int tiles, int rows) {
  BlockRange range{};
  const int tile = tiles - 1 - static_cast<int>(block % tiles);
  const int64_t rest = block / tiles;
  range.head = static_cast<int>(rest % call.heads);
  range.batch = static_cast<int>(rest / call.heads);
  range.row = tile * rows;
  range.query_count = call.query_len, range.key_count = call.key_len;
  if (call.cu_seqlens != nullptr) {
    const int sequence = range.batch;
    range.batch = 0;
    range.leftover = sequence == call.num_sequences;
    const auto bound = [&](int index) {
      const int value = call.cu_seqlens[index];
      return value < 0 ? 0 : value > call.query_len ? call.query_len : value;
    };
    range.first = bound(sequence);
    const int end = range.leftover ? call.query_len : bound(sequence + 1);
    range.query_count = range.key_count = end > range.first ? end - range.first : 0;
  }
  if (call.key_lengths != nullptr) {
    const int length = call.key_lengths[range.batch];
    range.key_count = length < 0 ? 0 : length < range.key_count ? length : range.key_count;
  }
  return range;
}

// How many leading keys a query sees: every mask here is such a limit, and it never falls from one query to the next.
JEPA_HOST_DEVICE inline int key_limit(const MaskedAttentionCall& call, int key_count, int query) {
  if (call.tokens_per_frame == 0) return key_count;
  const int64_t limit =
      (static_cast<int64_t>(call.query_frame_offset) + query / call.tokens_per_frame + 1) * call.tokens_per_frame;
  return limit < 0 ? 0 : limit < key_count ? static_cast<int>(limit) : key_count;
}

}  // namespace
}  // namespace jepa
