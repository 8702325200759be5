// The tiles of the CUDA patch embedding without a GPU: every value is followed from shared memory through the fragments of the
// tensor-core instructions, emulated lane by lane as the PTX manual lays them out, to its place in the result.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <vector>

#include "patch_embed_tile.h"

using namespace jepa;

namespace {

#define REQUIRE(condition)                                                      \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);       \
      std::exit(1);                                                             \
    }                                                                           \
  } while (false)

std::mt19937 engine(7);
int below(int limit) { return static_cast<int>(engine() % static_cast<unsigned>(limit)); }

// Small integers: sums are exact, so that places can be compared for equality.
struct Operand {
  int rows;
  std::vector<int> values, tile;  // [rows, kStep] in order; as tile_element() places them
  explicit Operand(int count) : rows(count), values(static_cast<size_t>(count * kStep)), tile(values.size(), 99999) {
    for (int row = 0; row < rows; ++row)
      for (int k = 0; k < kStep; ++k) {
        values[static_cast<size_t>(row * kStep + k)] = below(21) - 10;
        tile[static_cast<size_t>(tile_element(row, k / kChunk) + k % kChunk)] = values[static_cast<size_t>(row * kStep + k)];
      }
  }
  int at(int row, int k) const { return values[static_cast<size_t>(row * kStep + k)]; }
};

int product(const Operand& left, const Operand& right, int row, int column) {
  int sum = 0;
  for (int k = 0; k < kStep; ++k) sum += left.at(row, k) * right.at(column, k);
  return sum;
}

// ldmatrix .x4: lane l names row l % 8 of matrix l / 8, and receives of every matrix the two values of row l / 4 from column 2 (l % 4).
using Registers = int[32][4][2];
template <typename Address>
void load_matrices(Registers& out, const Operand& from, Address address) {
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int start = address(8 * matrix + lane / 4);
      for (int i = 0; i < 2; ++i) out[lane][matrix][i] = from.tile[static_cast<size_t>(start + 2 * (lane % 4) + i)];
    }
}

// mma .m16n8k16 .row.col: the fragments' places, from the PTX manual.
void multiply_add(int (&sum)[32][4], const Registers& left, const Registers& right, int first) {
  int a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 2; ++i) {
      for (int reg = 0; reg < 4; ++reg) a[lane / 4 + 8 * (reg % 2)][2 * (lane % 4) + i + 8 * (reg / 2)] = left[lane][reg][i];
      for (int reg = 0; reg < 2; ++reg) b[2 * (lane % 4) + i + 8 * reg][lane / 4] = right[lane][first + reg][i];
    }
  for (int lane = 0; lane < 32; ++lane)
    for (int c = 0; c < 4; ++c)
      for (int k = 0; k < 16; ++k) sum[lane][c] += a[lane / 4 + 8 * (c / 2)][k] * b[k][2 * (lane % 4) + c % 2];
}

void warp_products() {
  const Operand left(64), right(32);
  constexpr int kAcross = 32;
  for (int m = 0; m < 4; ++m)
    for (int n = 0; n < 2; ++n) {
      int sums[2][32][4] = {};
      for (int step = 0; step < kStep / 16; ++step) {
        Registers l, r;
        load_matrices(l, left, [&](int lane) {
          const Place at = left_place(lane, step);
          return tile_element(16 * m + at.row, at.chunk);
        });
        load_matrices(r, right, [&](int lane) {
          const Place at = right_place(lane, step);
          return tile_element(16 * n + at.row, at.chunk);
        });
        for (int half = 0; half < 2; ++half) multiply_add(sums[half], l, r, 2 * half);
      }
      for (int half = 0; half < 2; ++half)
        for (int lane = 0; lane < 32; ++lane)
          for (int pair = 0; pair < 2; ++pair) {
            const Place at = result_place(lane, pair);
            for (int i = 0; i < 2; ++i) {
              const int column = 16 * n + 8 * half + at.chunk + i;
              REQUIRE(column < kAcross);
              REQUIRE(sums[half][lane][2 * pair + i] == product(left, right, 16 * m + at.row, column));
            }
          }
    }
}

// Byte that the warpgroup instruction (and the copy engine) reads for (row, byte in row) of a 128-byte-swizzled operand described by
// `descriptor`: bits 4 to 6 of the address are exchanged with bits 7 to 9 by exclusive or.
uint32_t described_byte(uint64_t descriptor, int row, int byte) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t eight_rows = static_cast<uint32_t>((descriptor >> 32) & 0x3fff) << 4;
  const uint32_t linear = start + static_cast<uint32_t>(row / 8) * eight_rows + static_cast<uint32_t>(row % 8) * 128 + static_cast<uint32_t>(byte);
  return linear ^ (((linear >> 7) & 7) << 4);
}

void warpgroup_operands() {
  for (const uint32_t base : {0u, 1024u, 65536u, 196608u}) {
    REQUIRE(swizzled_descriptor(base) >> 62 == 1);  // 128-byte swizzle
    for (int part = 0; part < kStep / 16; ++part)
      for (int row = 0; row < 256; ++row)
        for (int k = 0; k < 16; ++k) {
          const uint32_t byte = described_byte(swizzled_descriptor(base) + static_cast<uint64_t>(2 * part), row, 2 * k);
          const int column = 16 * part + k;
          REQUIRE(byte == base + 2 * static_cast<uint32_t>(tile_element(row, column / kChunk) + column % kChunk));
        }
  }
  // Sums d[i] of a thread: row 16 w + l / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (l % 4) + i % 2.
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 128; ++i) {
      const Place at = result_place(lane, i / 2);
      REQUIRE(at.row == lane / 4 + 8 * (i / 2 % 2) && at.chunk + i % 2 == 8 * (i / 4) + 2 * (lane % 4) + i % 2);
    }
}

// Accesses that are served together touch every group of banks at most once.
void banks() {
  for (int step = 0; step < kStep / 16; ++step)
    for (int matrix = 0; matrix < 4; ++matrix) {
      std::set<int> left, right;
      for (int lane = 8 * matrix; lane < 8 * matrix + 8; ++lane) {
        const Place l = left_place(lane, step), r = right_place(lane, step);
        left.insert(tile_element(l.row, l.chunk) / kChunk % 8);
        right.insert(tile_element(r.row, r.chunk) / kChunk % 8);
      }
      REQUIRE(left.size() == 8 && right.size() == 8);
    }
  for (int first = 0; first < 64; first += 8) {  // eight threads store the chunks of one row
    std::set<int> groups;
    for (int thread = first; thread < first + 8; ++thread) groups.insert(tile_element(thread / kChunks, thread % kChunks) / kChunk % 8);
    REQUIRE(groups.size() == 8);
  }
  for (const int columns : {64, 128, 256})
    for (int half = 0; half < 2; ++half) {
      std::set<int> touched;
      for (int lane = 16 * half; lane < 16 * half + 16; ++lane) {
        const Place at = result_place(lane, 0);
        for (int i = 0; i < 2; ++i) touched.insert((at.row * result_stride(columns) + at.chunk + i) % 32);
      }
      REQUIRE(touched.size() == 32);
    }
}

PatchGeometry random_geometry(bool interleaved) {
  PatchGeometry g{};
  g.batch = 1 + below(3), g.channels = 1 + below(4);
  g.patch_t = 1 + below(2), g.patch_h = 1 + below(5), g.patch_w = 1 + below(20);
  g.grid_t = 1 + below(3), g.grid_h = 1 + below(3), g.grid_w = 1 + below(3);
  g.interleaved = interleaved;
  const int64_t width = static_cast<int64_t>(g.patch_w) * g.grid_w + below(3), height = g.patch_h * g.grid_h + below(2);
  g.stride_c = interleaved ? 1 : height * width * g.patch_t * g.grid_t;
  g.stride_w = interleaved ? g.channels : 1;
  g.stride_h = width * g.stride_w;
  g.stride_t = height * g.stride_h;
  g.stride_b = g.stride_t * g.patch_t * g.grid_t * (interleaved ? 1 : g.channels);
  return g;
}

// Every patch and column against nested loops in the order that the operator defines.
void columns_of(const PatchGeometry& g) {
  const float mean[] = {1, 2, 3, 4}, std[] = {2, 4, 8, 16};
  int64_t patch = 0;
  for (int64_t b = 0; b < g.batch; ++b)
    for (int t = 0; t < g.grid_t; ++t)
      for (int r = 0; r < g.grid_h; ++r)
        for (int c = 0; c < g.grid_w; ++c, ++patch)
          REQUIRE(patch_origin(g, patch) == b * g.stride_b + t * g.patch_t * g.stride_t + r * g.patch_h * g.stride_h +
                                                c * g.patch_w * g.stride_w);
  const int counts[2][4] = {{g.channels, g.patch_t, g.patch_h, g.patch_w}, {g.patch_t, g.patch_h, g.patch_w, g.channels}};
  const int* n = counts[g.interleaved];
  int k = 0;
  for (int i0 = 0; i0 < n[0]; ++i0)
    for (int i1 = 0; i1 < n[1]; ++i1)
      for (int i2 = 0; i2 < n[2]; ++i2)
        for (int i3 = 0; i3 < n[3]; ++i3, ++k) {
          const int c = g.interleaved ? i3 : i0, t = g.interleaved ? i0 : i1, y = g.interleaved ? i1 : i2, x = g.interleaved ? i2 : i3;
          const PatchColumn column = patch_column(g, k, mean, std);
          REQUIRE(column.offset == c * g.stride_c + t * g.stride_t + y * g.stride_h + x * g.stride_w);
          REQUIRE(column.mean == mean[c] && column.inv_std == 1.0f / std[c]);
          REQUIRE(patch_column(g, k, nullptr, nullptr).inv_std == 1.0f && patch_column(g, k, nullptr, nullptr).mean == 0.0f);
        }
  REQUIRE(k == g.columns());
  const PatchColumn beyond = patch_column(g, k, mean, std);
  REQUIRE(beyond.offset == 0 && beyond.mean == 0.0f && beyond.inv_std == 0.0f);
}

// Where chunks are called adjacent, every chunk of every patch is, and aligned.
int adjacency_of(const PatchGeometry& g, int64_t item, uintptr_t address) {
  if (!chunks_are_adjacent(g, reinterpret_cast<const void*>(address), item)) return 0;
  const int64_t bytes = std::min<int64_t>(16, item * kChunk);
  for (int64_t patch = 0; patch < g.batch * g.tokens(); ++patch)
    for (int k = 0; k < g.columns(); k += kChunk) {
      const int64_t first = patch_column(g, k, nullptr, nullptr).offset;
      REQUIRE((static_cast<int64_t>(address) + (patch_origin(g, patch) + first) * item) % bytes == 0);
      REQUIRE(k + kChunk <= g.columns());
      for (int i = 1; i < kChunk; ++i) REQUIRE(patch_column(g, k + i, nullptr, nullptr).offset == first + i);
    }
  return 1;
}

}  // namespace

int main() {
  warp_products();
  warpgroup_operands();
  banks();
  int adjacent = 0;
  for (int round = 0; round < 4000; ++round) {
    PatchGeometry g = random_geometry(round % 2 == 1);
    if (round % 3 == 0) g.patch_w = 8 * (1 + below(2));
    if (round < 400) columns_of(g);
    const int64_t item = int64_t{1} << below(3);
    adjacent += adjacency_of(g, item, 4096 + static_cast<uintptr_t>(below(4)) * 8);
  }
  REQUIRE(adjacent > 50);
  // The clip that models train with, planar and as decoded.
  PatchGeometry clip{24, 3, 2, 16, 16, 8, 16, 16, 3145728, 1048576, 65536, 256, 1, false};
  REQUIRE(adjacency_of(PatchGeometry{1, 3, 2, 16, 16, 2, 2, 2, 3145728, 1048576, 65536, 256, 1, false}, 1, 4096) == 1);
  REQUIRE(adjacency_of(PatchGeometry{1, 3, 2, 16, 16, 2, 2, 2, 3145728, 1, 196608, 768, 3, true}, 1, 4096) == 1);
  REQUIRE(chunks_are_adjacent(clip, reinterpret_cast<const void*>(4096), 4) && clip.columns() == 1536 && clip.tokens() == 2048);
  std::printf("every check passed\n");
  return 0;
}
