// A block of GPU threads on the host: each thread is a fibre that runs the device source until it must wait for others. Instructions
// of a warp are emulated lane by lane as the PTX manual lays them out; every access to memory is checked.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "jepa/float_types.h"

#define REQUIRE(condition)                                                      \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);       \
      std::fflush(stdout);                                                      \
      std::_Exit(1);                                                            \
    }                                                                           \
  } while (false)

// A rule of the machine that the program may not break.
#define OBEY(condition, rule)                                                                                              \
  do {                                                                                                                     \
    if (!(condition)) {                                                                                                    \
      std::printf("%s:%d: thread %d breaks a rule: %s\n", __FILE__, __LINE__, emulation::block().current, rule);           \
      std::fflush(stdout);                                                                                                 \
      std::_Exit(1);                                                                                                       \
    }                                                                                                                      \
  } while (false)

namespace emulation {

using jepa::bf16;
using jepa::fp16;

constexpr int kMaxThreads = 1024, kLanes = 32, kStackBytes = 256 * 1024, kSharedAlignment = 1024;

// Which legal execution is taken: the order in which threads run between waits, and when what is asynchronous happens.
struct Schedule {
  bool reversed;                 // the last thread runs first
  bool copies_at_once;           // when they are issued: one that is issued too early destroys what is still read; else at the wait
  bool products_at_once = true;  // of warpgroups: when they are issued; else at the wait, from what registers and memory hold then
};

struct Range {
  const unsigned char *begin, *end;
  bool writable;
};

// Threads that wait for each other. The last to arrive does what all have come for.
struct Meeting {
  const char* of = "";
  int size = 0, arrived = 0, generation = 0;
};

// What a lane brings to an instruction of its warp, and what it takes away.
struct LaneState {
  const uint16_t* address;
  uint32_t left[4], right[2];
  float value;
  uint32_t words[4];
  float sums[4];
};

struct Copy {
  void* to;
  const void* from;
  bool inside;
};

// What a thread waits for, told when all wait for ever.
struct Waiting {
  const char* what;
  uint32_t address = 0, parity = 0;
};

struct Block {
  Schedule schedule{};
  std::vector<Range> memory;  // of the device
  std::vector<uint16_t> shared;
  std::function<void()> program;
  std::function<bool()> relieve;  // when all threads wait: lets something happen that is under way; false if nothing is
  int threads = 0;
  jmp_buf contexts[kMaxThreads];
  ucontext_t starts[kMaxThreads], main;
  std::unique_ptr<char[]> stacks{new char[static_cast<size_t>(kMaxThreads) * kStackBytes]};  // untouched pages cost nothing
  bool started[kMaxThreads], finished[kMaxThreads];
  std::vector<Copy> pending[kMaxThreads];
  Meeting block, warps[kMaxThreads / kLanes];
  LaneState lanes[kMaxThreads];
  Waiting waiting[kMaxThreads];
  int current = 0, idle = 0;
  int64_t matrix_loads = 0, products = 0;
};

inline Block& block() {
  static Block instance;
  return instance;
}

[[gnu::noinline]] inline int next_thread(int from) {
  Block& b = block();
  for (int i = 1; i <= b.threads; ++i) {
    const int thread = (from + (b.schedule.reversed ? b.threads - i : i)) % b.threads;
    if (!b.finished[thread]) return thread;
  }
  return -1;
}

inline void run_thread(int thread) {
  Block& b = block();
  b.current = thread;
  if (b.started[thread]) _longjmp(b.contexts[thread], 1);
  b.started[thread] = true;
  setcontext(&b.starts[thread]);
}

inline void report_deadlock() {
  Block& b = block();
  std::map<std::string, int> counts;
  for (int thread = 0; thread < b.threads; ++thread) {
    const Waiting& waiting = b.waiting[thread];
    if (!b.finished[thread])
      counts[std::string(waiting.what) + " " + std::to_string(waiting.address) + ", parity " + std::to_string(waiting.parity)] += 1;
  }
  std::printf("deadlock: all threads wait for what never comes\n");
  for (const auto& [waiting, threads] : counts) std::printf("  %d threads wait for %s\n", threads, waiting.c_str());
  std::fflush(stdout);
  std::_Exit(1);
}

// Whatever may end a wait sets `idle` to 0: once all threads have looked since then, nobody goes on by itself.
inline void give_way(Waiting waiting) {
  Block& b = block();
  const int self = b.current;
  b.waiting[self] = waiting;
  if (++b.idle > b.threads) {
    if (!b.relieve || !b.relieve()) report_deadlock();
    b.idle = 0;
  }
  const int next = next_thread(self);
  if (next == self) return;
  if (_setjmp(b.contexts[self]) == 0) run_thread(next);
}

inline void thread_main() {
  Block& b = block();
  b.program();
  REQUIRE(b.pending[b.current].empty());
  b.finished[b.current] = true;
  b.idle = 0;
  const int next = next_thread(b.current);
  if (next < 0) setcontext(&b.main);
  run_thread(next);
}

// Runs `program` in every thread of one block with `elements` of shared memory, which hold NaN at first.
inline void run_block(size_t elements, std::function<void()> program, int threads = 128) {
  Block& b = block();
  REQUIRE(threads % kLanes == 0 && threads <= kMaxThreads);
  b.threads = threads;
  b.shared.assign(elements + kSharedAlignment / 2, 0x7fff);
  b.program = std::move(program);
  b.block = Meeting{"the block", threads, 0, 0};
  for (Meeting& warp : b.warps) warp = Meeting{"the warp", kLanes, 0, 0};
  b.idle = 0;
  volatile bool entered = false;
  getcontext(&b.main);
  if (entered) return;
  entered = true;
  for (int thread = 0; thread < threads; ++thread) {
    b.started[thread] = b.finished[thread] = false;
    getcontext(&b.starts[thread]);
    b.starts[thread].uc_stack.ss_sp = b.stacks.get() + static_cast<size_t>(thread) * kStackBytes;
    b.starts[thread].uc_stack.ss_size = kStackBytes;
    b.starts[thread].uc_link = nullptr;
    makecontext(&b.starts[thread], thread_main, 0);
  }
  run_thread(b.schedule.reversed ? threads - 1 : 0);
}

inline uint16_t* shared_memory() {
  const uintptr_t address = reinterpret_cast<uintptr_t>(block().shared.data());
  return reinterpret_cast<uint16_t*>((address + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment);
}

inline size_t shared_bytes() { return 2 * block().shared.size() - kSharedAlignment; }

template <typename Action>
void meet(Meeting& meeting, Action action) {
  const int generation = meeting.generation;
  block().idle = 0;
  if (++meeting.arrived == meeting.size) {
    action();
    meeting.arrived = 0;
    ++meeting.generation;
  }
  while (meeting.generation == generation) give_way({meeting.of});
}

inline void check_shared(const void* address, int bytes) {
  const char* const begin = reinterpret_cast<const char*>(shared_memory());
  const char* const at = static_cast<const char*>(address);
  REQUIRE(at >= begin && at + bytes <= begin + shared_bytes());
  REQUIRE(reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(bytes) == 0);
}

inline void check_range(const void* address, size_t bytes, bool written) {
  const auto* const at = static_cast<const unsigned char*>(address);
  const auto holds = [&](const Range& range) { return at >= range.begin && at + bytes <= range.end && (range.writable || !written); };
  REQUIRE(std::any_of(block().memory.begin(), block().memory.end(), holds));
}

inline void check_device(const void* address, bool written, size_t bytes = 16) {
  check_range(address, bytes, written);
  REQUIRE(reinterpret_cast<uintptr_t>(address) % bytes == 0);
}

template <typename Value>
float half_of(uint32_t pair, int which) {
  return jepa::to_float(Value{static_cast<uint16_t>(pair >> (16 * which))});
}

template <typename Chunk>
struct Machine {
  static int thread() { return block().current; }
  static LaneState& lane() { return block().lanes[block().current]; }
  static LaneState* warp() { return block().lanes + block().current / kLanes * kLanes; }
  static Meeting& of_warp() { return block().warps[block().current / kLanes]; }

  static void synchronise() { meet(block().block, [] {}); }
  static void synchronise_warp() { meet(of_warp(), [] {}); }

  template <typename T>
  static T load(const T* from) {
    check_device(from, false, sizeof(T));
    return *from;
  }
  template <typename T>
  static void store(T* to, T value) {
    check_device(to, true, sizeof(T));
    *to = value;
  }
  struct Words {
    uint32_t x, y;
  };
  static Words load_8(const void* from) {
    check_device(from, false, 8);
    Words result;
    std::memcpy(&result, from, 8);
    return result;
  }
  static Chunk load_16(const void* from) {
    check_device(from, false);
    Chunk result;
    std::memcpy(&result, from, 16);
    return result;
  }
  static void store_16(void* to, const Chunk& chunk) {
    check_device(to, true);
    std::memcpy(to, &chunk, 16);
  }

  static void copy_async(void* to, const void* from, bool inside) {
    check_shared(to, 16);
    if (inside) check_device(from, false);
    block().pending[block().current].push_back({to, from, inside});
    if (block().schedule.copies_at_once) wait_for_copies();
  }
  static void wait_for_copies() {
    for (const Copy& copy : block().pending[block().current])
      copy.inside ? (void)std::memcpy(copy.to, copy.from, 16) : (void)std::memset(copy.to, 0, 16);
    block().pending[block().current].clear();
  }

  // ldmatrix .x4: lane l names row l % 8 of matrix l / 8, and receives of every matrix two values of row l / 4 from column 2 (l % 4);
  // transposed, of column l / 4 from row 2 (l % 4).
  static void load(uint32_t (&out)[4], const uint16_t* from, bool transposed) {
    check_shared(from, 16);
    lane().address = from;
    LaneState* const lanes = warp();
    meet(of_warp(), [&] {
      block().matrix_loads += 1;
      for (int matrix = 0; matrix < 4; ++matrix) {
        std::set<uintptr_t> banks, rows;
        for (int row = 0; row < 8; ++row) {
          rows.insert(reinterpret_cast<uintptr_t>(lanes[8 * matrix + row].address));
          banks.insert(reinterpret_cast<uintptr_t>(lanes[8 * matrix + row].address) / 16 % 8);
        }
        REQUIRE(banks.size() == rows.size());  // eight rows at once, each in banks of its own
        for (int l = 0; l < kLanes; ++l) {
          uint32_t pair = 0;
          for (int i = 0; i < 2; ++i) {
            const int row = transposed ? 2 * (l % 4) + i : l / 4, column = transposed ? l / 4 : 2 * (l % 4) + i;
            pair |= static_cast<uint32_t>(lanes[8 * matrix + row].address[column]) << (16 * i);
          }
          lanes[l].words[matrix] = pair;
        }
      }
    });
    std::copy(lane().words, lane().words + 4, out);
  }
  static void load_matrices(uint32_t (&out)[4], const uint16_t* from) { load(out, from, false); }
  static void load_transposed_matrices(uint32_t (&out)[4], const uint16_t* from) { load(out, from, true); }

  // mma .m16n8k16 (kHalves = 2) and .m16n8k8 (1), .row.col: the fragments' places, from the PTX manual.
  template <typename Value, int kHalves>
  static void multiply(float (&sum)[4]) {
    LaneState* const lanes = warp();
    std::copy(sum, sum + 4, lane().sums);
    meet(of_warp(), [&] {
      block().products += 1;
      float a[16][16] = {}, b[16][8] = {};
      for (int l = 0; l < kLanes; ++l)
        for (int i = 0; i < 2; ++i) {
          for (int reg = 0; reg < 2 * kHalves; ++reg)
            a[l / 4 + 8 * (reg % 2)][2 * (l % 4) + i + 8 * (reg / 2)] = half_of<Value>(lanes[l].left[reg], i);
          for (int reg = 0; reg < kHalves; ++reg) b[2 * (l % 4) + i + 8 * reg][l / 4] = half_of<Value>(lanes[l].right[reg], i);
        }
      for (int l = 0; l < kLanes; ++l)
        for (int c = 0; c < 4; ++c)
          for (int k = 0; k < 8 * kHalves; ++k) lanes[l].sums[c] += a[l / 4 + 8 * (c / 2)][k] * b[k][2 * (l % 4) + c % 2];
    });
    std::copy(lane().sums, lane().sums + 4, sum);
  }
  template <typename Value>
  static void multiply_add(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
    std::copy(left, left + 4, lane().left);
    lane().right[0] = right0, lane().right[1] = right1;
    multiply<Value, 2>(sum);
  }
  template <typename Value>
  static void multiply_add(float (&sum)[4], const uint32_t (&left)[2], uint32_t right) {
    std::copy(left, left + 2, lane().left);
    lane().right[0] = right;
    multiply<Value, 1>(sum);
  }

  static float exchange(float x, int lanes) {
    lane().value = x;
    meet(of_warp(), [lanes] {
      LaneState* const all = warp();
      for (int l = 0; l < kLanes; ++l) all[l].sums[0] = all[l ^ lanes].value;
    });
    return lane().sums[0];
  }

  // Whether it is so in any lane of the warp.
  static bool any(bool x) {
    lane().value = x ? 1.0f : 0.0f;
    meet(of_warp(), [] {
      LaneState* const all = warp();
      const bool found = std::any_of(all, all + kLanes, [](const LaneState& each) { return each.value != 0.0f; });
      for (int l = 0; l < kLanes; ++l) all[l].words[0] = found;
    });
    return lane().words[0] != 0;
  }

  struct Pair {
    float x, y;
  };
  template <typename Value>
  static float value(Value x) {
    return jepa::to_float(x);
  }
  template <typename Value>
  static Pair values(uint32_t pair) {
    return {half_of<Value>(pair, 0), half_of<Value>(pair, 1)};
  }
  template <typename Value>
  static uint32_t pair(float low, float high) {
    return jepa::Cast<Value>::from(low).bits | static_cast<uint32_t>(jepa::Cast<Value>::from(high).bits) << 16;
  }
  static float larger(float a, float b) { return std::fmax(a, b); }
  static float power_of_2(float x) { return std::exp2(x); }
  static float reciprocal(float x) { return 1.0f / x; }
  static float logarithm_2(float x) { return std::log2(x); }
};

}  // namespace emulation
