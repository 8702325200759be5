// Asynchronous products of warpgroups (wgmma) for threads of block_emulation.h: operands in shared memory by their descriptors, sums and
// left operands in registers, groups that are committed and waited for. Rules and layouts are the PTX manual's.
#pragma once

#include <array>
#include <deque>

#include "copy_engine_emulation.h"

namespace emulation {

constexpr int kWarpgroup = 128;

// The right operand of a product in shared memory, n by k.
struct Operand {
  uint64_t descriptor;
  uint32_t start, leading, stride;
  int swizzle;  // bytes; 0 for none

  explicit Operand(uint64_t descriptor_)
      : descriptor(descriptor_),
        start(units(0) << 4),
        leading(units(16) << 4),
        stride(units(32) << 4),
        swizzle(descriptor >> 62 == 0 ? 0 : 256 >> (descriptor >> 62)) {}

  uint32_t units(int first) const { return static_cast<uint32_t>(descriptor >> first & 0x3fff); }

  // Atoms are 8 rows of as many bytes as the swizzle has: rows are n (k contiguous), or k (n contiguous: transposed).
  void check(bool transposed, int columns) const {
    OBEY(swizzle != 0, "operands without a swizzle are not emulated");
    OBEY((descriptor & 0x3fffc000c000c000) == 0, "a descriptor's reserved bits and its base offset are 0");
    const uint32_t row = static_cast<uint32_t>(swizzle), repeat = swizzle_repeat(swizzle);
    if (transposed) {
      OBEY(start % repeat == 0, "a transposed operand begins with an atom");
      OBEY(2 * columns % swizzle == 0, "a transposed operand has whole atoms of columns");
      OBEY(stride % repeat == 0, "eight rows of k begin where the swizzle repeats");
      OBEY(2 * columns == swizzle || leading % repeat == 0, "atoms of columns begin where the swizzle repeats");
    } else {
      OBEY(start % repeat < row && start % 32 == 0, "an operand begins in the first row of an atom, at a multiple of 16 k");
      OBEY(columns == 8 || stride % repeat == 0, "eight rows of n begin where the swizzle repeats");
    }
  }

  uint32_t address(bool transposed, int n, int k) const {
    const uint32_t across = static_cast<uint32_t>(2 * (transposed ? n : k)), down = static_cast<uint32_t>(transposed ? k : n);
    const uint32_t row = static_cast<uint32_t>(swizzle);
    // Beyond the swizzle's width the next atom follows at the leading offset; 16 k never pass it.
    const uint32_t atom = transposed ? across / row * leading + across % row : across;
    return swizzled(start + down / 8 * stride + down % 8 * row + atom, swizzle);
  }

  // Places of 16 bytes that the product reads.
  template <typename Action>
  void for_each_place(bool transposed, int columns, Action action) const {
    for (int n = 0; n < columns; n += transposed ? 8 : 1)
      for (int k = 0; k < 16; k += transposed ? 1 : 8) {
        const uint32_t at = address(transposed, n, k);
        OBEY(at + 16 <= shared_bytes(), "an operand lies in shared memory");
        action(at);
      }
  }

  uint16_t value(bool transposed, int n, int k) const {
    uint16_t bits;
    std::memcpy(&bits, shared_at(address(transposed, n, k)), 2);
    return bits;
  }
};

// Registers that products in flight write. What they hold meanwhile is the schedule's choice, and they must not be touched: a signalling
// NaN, which no arithmetic leaves as it is, or the sums so far.
struct Sums {
  float (*registers)[4];
  std::vector<float> values;
  int in_flight;

  static constexpr uint32_t kUnfinished = 0x7fa0dead;

  const void* shown(size_t i) const {
    return block().schedule.products_at_once ? static_cast<const void*>(&values[i]) : &kUnfinished;
  }
  void show() const {
    for (size_t i = 0; i < values.size(); ++i) std::memcpy(&registers[i / 4][i % 4], shown(i), 4);
  }
  void check() const {
    for (size_t i = 0; i < values.size(); ++i)
      OBEY(std::memcmp(&registers[i / 4][i % 4], shown(i), 4) == 0, "sums of a product in flight were written");
  }
};

struct Product;
using Arithmetic = void (*)(Product&);

// What a thread brings to a product.
struct ThreadOperands {
  float (*sums)[4];
  const uint32_t* left;
  uint64_t right;
  bool accumulate;
  Arithmetic arithmetic;  // says which instruction it is
  int columns;
  bool transposed;
};

struct Product {
  std::array<ThreadOperands, kWarpgroup> threads;
  std::array<std::array<uint32_t, 4>, kWarpgroup> left;  // at the issue
  int group;
  bool done = false;
};

struct Step {
  enum Kind { kFence, kCommit, kWait } kind;
  int left;
  bool operator==(const Step& other) const { return kind == other.kind && left == other.left; }
};

struct Warpgroup {
  Meeting meeting{"its warpgroup's product", kWarpgroup, 0, 0};
  std::array<ThreadOperands, kWarpgroup> issued;
  std::vector<Step> steps;  // since the latest product; all threads take the same
  std::array<size_t, kWarpgroup> taken{};
  bool fenced = false;
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
  std::vector<Sums> sums[kWarpgroup];
};

inline Warpgroup& warpgroup(int index) {
  static Warpgroup instances[kMaxThreads / kWarpgroup];
  return instances[index];
}

inline Warpgroup& warpgroup() { return warpgroup(block().current / kWarpgroup); }

inline Sums* find_sums(std::vector<Sums>& all, const float (*registers)[4], int columns) {
  for (Sums& sums : all) {
    if (sums.registers == registers) {
      OBEY(static_cast<int>(sums.values.size()) == columns / 2, "products in flight share sums only in the same shape");
      return &sums;
    }
    const bool apart = registers + columns / 8 <= sums.registers || sums.registers + sums.values.size() / 4 <= registers;
    OBEY(apart, "products in flight share sums only in the same shape");
  }
  return nullptr;
}

// Takes the sums away until the product is waited for.
inline void begin(Warpgroup& group, const Product& product) {
  for (size_t t = 0; t < kWarpgroup; ++t) {
    const ThreadOperands& mine = product.threads[t];
    if (Sums* const sums = find_sums(group.sums[t], mine.sums, mine.columns)) {
      sums->check();
      sums->in_flight += 1;
      continue;
    }
    Sums sums{mine.sums, std::vector<float>(static_cast<size_t>(mine.columns / 2)), 1};
    for (size_t i = 0; mine.accumulate && i < sums.values.size(); ++i) sums.values[i] = mine.sums[i / 4][i % 4];
    sums.show();
    group.sums[t].push_back(std::move(sums));
  }
}

inline void give_back(std::vector<Sums>& all, const ThreadOperands& mine) {
  Sums& sums = *find_sums(all, mine.sums, mine.columns);
  sums.check();
  if (--sums.in_flight > 0) return;
  for (size_t i = 0; i < sums.values.size(); ++i) sums.registers[i / 4][i % 4] = sums.values[i];
  all.erase(all.begin() + (&sums - all.data()));
}

inline void check_left(const Product& product) {
  for (size_t t = 0; t < kWarpgroup; ++t)
    OBEY(std::memcmp(product.threads[t].left, product.left[t].data(), 16) == 0, "the left operand of a product in flight was written");
}

// Row and column of the value that a thread holds in register pair `reg` of a left fragment of 64 x 16, warps below each other.
inline int left_row(int thread, int reg) { return thread / kLanes * 16 + thread % kLanes / 4 + 8 * (reg % 2); }
inline int left_column(int thread, int reg) { return 2 * (thread % 4) + 8 * (reg / 2); }

template <typename Value, int kColumns, bool kTransposed>
void carry_out(Product& product) {
  Warpgroup& group = warpgroup(product.group);
  static float left[64][16], right[kColumns][16];
  const Operand operand(product.threads[0].right);
  for (int n = 0; n < kColumns; ++n)
    for (int k = 0; k < 16; ++k) right[n][k] = jepa::to_float(Value{operand.value(kTransposed, n, k)});
  for (int t = 0; t < kWarpgroup; ++t)
    for (int reg = 0; reg < 4; ++reg)
      for (int i = 0; i < 2; ++i)
        left[left_row(t, reg)][left_column(t, reg) + i] = half_of<Value>(product.threads[static_cast<size_t>(t)].left[reg], i);
  for (int t = 0; t < kWarpgroup; ++t) {
    const ThreadOperands& mine = product.threads[static_cast<size_t>(t)];
    Sums& sums = *find_sums(group.sums[t], mine.sums, kColumns);
    if (!mine.accumulate) std::fill(sums.values.begin(), sums.values.end(), 0.0f);
    for (int i = 0; i < kColumns / 2; ++i) {
      const float* const row = left[left_row(t, i % 4 / 2)];
      const float* const column = right[8 * (i / 4) + 2 * (t % 4) + i % 2];
      for (int k = 0; k < 16; ++k) sums.values[static_cast<size_t>(i)] += row[k] * column[k];
    }
    if (block().schedule.products_at_once) sums.show();
  }
}

inline void do_arithmetic(Product& product) {
  if (!product.done) product.threads[0].arithmetic(product);
  product.done = true;
}

// The product has been waited for: until here what it reads and writes may not change.
inline void finish(Warpgroup& group, Product& product) {
  check_left(product);
  do_arithmetic(product);
  for (size_t t = 0; t < kWarpgroup; ++t) give_back(group.sums[t], product.threads[t]);
  const ThreadOperands& all = product.threads[0];
  Operand(all.right).for_each_place(all.transposed, all.columns, [](uint32_t at) { copy_engine().readers[at / 16] -= 1; });
}

// The last of a warpgroup's threads issues for all.
inline void issue(Warpgroup& group) {
  for (size_t t = 0; t < kWarpgroup; ++t) {
    const ThreadOperands &mine = group.issued[t], &first = group.issued[0];
    OBEY(mine.arithmetic == first.arithmetic && mine.right == first.right && mine.accumulate == first.accumulate,
         "the threads of a warpgroup issue one product");
    OBEY(group.taken[t] == group.steps.size(), "the threads of a warpgroup fence, commit and wait alike");
  }
  OBEY(group.fenced || !group.open.empty(), "fence_products is missing before the first product of a group");
  const ThreadOperands& all = group.issued[0];
  const Operand right(all.right);
  right.check(all.transposed, all.columns);
  right.for_each_place(all.transposed, all.columns, [](uint32_t at) {
    check_seen(at);
    copy_engine().readers[at / 16] += 1;
  });
  group.steps.clear();
  group.taken.fill(0);
  Product product{group.issued, {}, block().current / kWarpgroup, false};
  for (size_t t = 0; t < kWarpgroup; ++t) std::copy(product.threads[t].left, product.threads[t].left + 4, product.left[t].begin());
  begin(group, product);
  if (block().schedule.products_at_once) do_arithmetic(product);
  group.open.push_back(product);
  block().products += 1;
}

// The first thread to take a step takes it for its warpgroup; others must follow.
template <typename Action>
void take_step(Step step, Action action) {
  Warpgroup& group = warpgroup();
  size_t& taken = group.taken[static_cast<size_t>(block().current % kWarpgroup)];
  if (taken == group.steps.size()) {
    group.steps.push_back(step);
    action(group);
  }
  OBEY(group.steps[taken] == step, "the threads of a warpgroup fence, commit and wait alike");
  taken += 1;
}

inline void leave() {
  const Warpgroup& group = warpgroup();
  OBEY(group.open.empty(), "a thread ends with a product that is not committed");
  OBEY(group.groups.empty(), "a thread ends with a product that is not waited for");
  OBEY(group.taken[static_cast<size_t>(block().current % kWarpgroup)] == group.steps.size(),
       "the threads of a warpgroup fence, commit and wait alike");
}

}  // namespace emulation
