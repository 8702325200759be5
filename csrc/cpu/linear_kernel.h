// What a product of the linear layer is, how it is cut for caches and threads, and the functions that an instruction set brings for it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "jepa/float_types.h"
#include "jepa/tensor_view.h"

namespace jepa {

// What happens to a sum of products before it is stored. kGelu: the exact (erf) GELU. kGeluKeep: also stores what went into it.
// kGeluGradient: multiplied by the GELU's derivative at a stored input.
enum class Epilogue : int { kNone = 0, kGelu = 1, kGeluKeep = 2, kGeluGradient = 3 };

// C [rows, columns] = A [rows, inner] B [inner, columns]; products of bf16, sums in float32. `columns` is a multiple of 16.
struct ProductTask {
  // A: row-major, `a_stride` elements from row to row, `inner` even; or, where `a_packed`, what `pack_left` wrote.
  const bf16* a;
  int64_t a_stride;
  bool a_packed;
  // B: row-major [inner, columns], or, where `b_transposed`, its transpose row-major [columns, inner]; float32 or bf16.
  const void* b;
  DType b_dtype;
  int64_t b_stride;
  bool b_transposed;
  int64_t rows, columns, inner;
  void* c;  // row-major, float32 or bf16
  DType c_dtype;
  int64_t c_stride;
  const float* bias;  // (columns) or null
  Epilogue epilogue;
  bf16* pre;  // of the GELU: written by kGeluKeep, read by kGeluGradient
  int64_t pre_stride;
};

// 32 columns of B, as units of two bf16 of one column, make a panel; 12 rows of A make a tile: 24 sums, two vectors of B and a broadcast
// of A fill the registers. `pack_left` lays 48 rows of A side by side, as units, so that they need not be contiguous along `inner`.
constexpr int kTileRows = 12;
constexpr int64_t kPanelColumns = 32, kGroupRows = 48;

// A chunk is a range of panels, all rows, one block of `inner` after the other; it belongs to one thread.
struct ProductPlan {
  int64_t inner_block;  // a multiple of 32
  int64_t panels_in_chunk, chunks;

  int64_t panel_elements() const { return inner_block * kPanelColumns; }
  int64_t chunk_columns() const { return panels_in_chunk * kPanelColumns; }
  bool blocked(const ProductTask& task) const { return task.inner > inner_block; }
  int64_t scratch_bytes(const ProductTask& task) const {
    const int64_t sums = blocked(task) ? task.rows * chunk_columns() * static_cast<int64_t>(sizeof(float)) : 0;
    return panels_in_chunk * panel_elements() * static_cast<int64_t>(sizeof(bf16)) + sums;
  }
};

struct LinearKernels {
  void (*run_chunk)(const ProductTask&, const ProductPlan&, int64_t chunk, char* scratch);
  // Makes a group of 48 rows of A from 48 columns of `source` [inner, rows], and adds each up into sums[row] where `sums` is given.
  void (*pack_left)(const bf16* source, int64_t stride, int64_t rows, int64_t inner, int64_t inner_block, int64_t group, bf16* packed,
                    float* sums);
};

// Where a group of rows begins in what `pack_left` writes, for the block of `inner` that begins at `first` and has `block` values.
inline int64_t packed_offset(int64_t rows, int64_t group, int64_t first, int64_t block) {
  return first * rows + group * kGroupRows * (block + block % 2);
}

}  // namespace jepa
