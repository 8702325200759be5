// Sizes of packed operands, the division of queries into blocks, and a bump allocator over the scratch that the caller hands in.
#pragma once

#include "problem.h"

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

constexpr int kBlockVectors = 3;  // vectors of queries in a block: 8 x 3 accumulators, 3 loads and 1 broadcast fill 28 registers

inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <class A>
struct Layout {
  using E = typename A::Element;
  int64_t units;        // units of a row of head_dim values
  int64_t unit_stride;  // the same, padded for the transpose
  int64_t row_panels;   // groups of kRows channels
  int64_t lane_dim;     // head_dim padded to whole vectors
  int64_t keys;         // padded to whole register tiles
  int64_t vectors;      // of queries

  explicit Layout(const AttentionProblem& p)
      : units(p.dim / A::kPack),
        unit_stride(round_up(units, A::kLanes)),
        row_panels((p.dim + A::kRows - 1) / A::kRows),
        lane_dim(round_up(p.dim, A::kLanes)),
        keys(round_up(p.keys, 8)),
        vectors((p.queries + A::kLanes - 1) / A::kLanes) {}

  int64_t key_row_elements() const { return keys * p_dim(); }
  int64_t p_dim() const { return units * A::kPack; }
  int64_t panel_elements() const { return row_panels * A::kRows * keys; }
};

// Block i covers whole vectors; a last block of one vector is avoided by taking one from its neighbour.
struct QueryBlock {
  int64_t first_vector;
  int vectors;
};

inline int64_t query_block_count(int64_t vectors) { return (vectors + kBlockVectors - 1) / kBlockVectors; }

inline QueryBlock query_block(int64_t vectors, int64_t index) {
  const int64_t count = query_block_count(vectors);
  const bool split_tail = count > 1 && vectors % kBlockVectors == 1;
  if (split_tail && index >= count - 2) return {index == count - 1 ? vectors - 2 : vectors - 4, 2};
  return {index * kBlockVectors, static_cast<int>(smaller(kBlockVectors, vectors - index * kBlockVectors))};
}

// Hands out 64-byte aligned pieces. With a null base it only counts.
class Bump {
 public:
  explicit Bump(char* base) : base_(base) {}

  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }

  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace jepa
