// A block of warpgroups of compute capability 9.0 on the host: the machine that warp-specialised kernels run on. What the PTX manual
// leaves undefined ends the program, with the rule that was broken.
#pragma once

#include "warpgroup_products_emulation.h"

namespace emulation {

struct NamedBarrier {
  Meeting meeting{"a named barrier", 0, 0, 0};
  int warpgroup = -1;
};

inline NamedBarrier& named_barrier(int number) {
  static NamedBarrier instances[16];
  OBEY(number >= 1 && number < 16, "named barriers are 1 to 15");
  return instances[number];
}

inline void meet_at(int number, int threads) {
  Meeting& meeting = named_barrier(number).meeting;
  if (meeting.arrived == 0) meeting.size = threads;
  OBEY(meeting.size == threads, "threads that meet at a named barrier agree how many they are");
  meet(meeting, [] {});
}

// Registers of the block, which its threads hand over (setmaxnreg).
struct Registers {
  int held[kMaxThreads];
  int free = 0;
};

inline Registers& registers() {
  static Registers instance;
  return instance;
}

inline void hold_registers(int count, bool more) {
  int& held = registers().held[block().current];
  OBEY(more ? count >= held : count <= held, "registers are released or claimed, as the instruction says");
  while (registers().free < count - held) give_way({"registers of others"});
  registers().free += held - count;
  held = count;
  block().idle = 0;
}

// Runs `program` in every thread of one block of warpgroups, which starts with `registers_a_thread`: by default, what there are for one
// block on a multiprocessor. Shared memory holds NaN at first.
inline void run_warpgroups(int threads, size_t bytes, const std::function<void()>& program, int registers_a_thread = 0) {
  REQUIRE(threads % kWarpgroup == 0 && bytes % 16 == 0);
  std::fill(registers().held, registers().held + threads, registers_a_thread > 0 ? registers_a_thread : 65536 / threads / 8 * 8);
  registers().free = 0;
  prepare_copy_engine(bytes);
  for (int i = 0; i < kMaxThreads / kWarpgroup; ++i) warpgroup(i) = Warpgroup{};
  for (int i = 1; i < 16; ++i) named_barrier(i) = NamedBarrier{};
  const auto until_left = [&] {
    program();
    leave();
  };
  run_block(bytes / 2, until_left, threads);
  check_copy_engine();
}

template <typename Chunk>
struct WarpgroupMachine : Machine<Chunk> {
  using TensorMap = emulation::TensorMap;

  static uint32_t shared_address(const void* pointer) {
    check_shared(pointer, 1);
    return static_cast<uint32_t>(static_cast<const char*>(pointer) - shared_at(0));
  }
  static void store_shared_16(void* to, const Chunk& chunk) { store_shared(to, &chunk); }

  static void synchronise_warpgroup(int group) {
    const int self = block().current / kWarpgroup;
    int& owner = named_barrier(1 + group).warpgroup;
    if (named_barrier(1 + group).meeting.arrived == 0) owner = self;
    OBEY(owner == self, "threads of two warpgroups meet at one warpgroup's barrier");
    meet_at(1 + group, kWarpgroup);
  }
  template <int kBarrier, int kThreads>
  static void synchronise_part() {
    static_assert(kThreads % kLanes == 0, "warps meet");
    meet_at(kBarrier, kThreads);
  }

  // A value that is the same in all lanes of the warp.
  static int uniform(int x) {
    Machine<Chunk>::lane().words[0] = static_cast<uint32_t>(x);
    LaneState* const lanes = Machine<Chunk>::warp();
    meet(Machine<Chunk>::of_warp(), [lanes] {
      for (int l = 1; l < kLanes; ++l) OBEY(lanes[l].words[0] == lanes[0].words[0], "a uniform value is the same in all lanes");
    });
    return x;
  }

  template <int kRegisters>
  static void release_registers() {
    static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "what the instruction takes");
    hold_registers(kRegisters, false);
  }
  template <int kRegisters>
  static void claim_registers() {
    static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "what the instruction takes");
    hold_registers(kRegisters, true);
  }

  static void init_barrier(uint32_t barrier, int arrivals) { initialise_barrier(barrier, arrivals); }
  static void fence_barrier_init() {
    for (auto& [address, barrier] : copy_engine().barriers)
      if (barrier.initialised_by == block().current) barrier.fenced = true;
  }
  static void arrive(uint32_t barrier) { arrive_at(barrier, 0); }
  static void arrive_expecting(uint32_t barrier, int bytes) { arrive_at(barrier, bytes); }
  static void wait(uint32_t barrier, uint32_t parity) { wait_at(barrier, parity); }
  static void copy_tile(const TensorMap& map, uint32_t to, uint32_t barrier, int c0, int c1, int c2 = 0, int c3 = 0) {
    start_copy({map, to, barrier, {c0, c1, c2, c3}});
  }
  static void fence_proxy_async() { show_stores(); }

  static void fence_products() {
    take_step({Step::kFence, 0}, [](Warpgroup& group) { group.fenced = true; });
  }
  // sums (+)= left @ right: left as the fragments of mma .m16n8k16, a warp 16 rows below the other; right in shared memory, of `kColumns`
  // rows of k, or transposed 16 rows of n.
  template <typename Value, int kColumns, bool kTransposed>
  static void multiply(float (*sums)[4], const uint32_t (&left)[4], uint64_t right, bool accumulate) {
    static_assert(kColumns % 8 == 0 && kColumns >= 8 && kColumns <= 256, "the instruction's shapes");
    issue_together({sums, left, 0, right, accumulate, carry_out<Value, kColumns, kTransposed>, kColumns, kTransposed});
  }
  // Both operands in shared memory, their rows of k.
  template <typename Value, int kColumns>
  static void multiply_shared(float (*sums)[4], uint64_t left, uint64_t right, bool accumulate) {
    static_assert(kColumns % 8 == 0 && kColumns >= 8 && kColumns <= 256, "the instruction's shapes");
    issue_together({sums, nullptr, left, right, accumulate, carry_out<Value, kColumns, false>, kColumns, false});
  }
  static void commit_products() {
    take_step({Step::kCommit, 0}, [](Warpgroup& group) {
      group.groups.push_back(std::move(group.open));
      group.open.clear();
      group.fenced = false;
    });
  }
  template <int kLeft>
  static void wait_for_products() {
    take_step({Step::kWait, kLeft}, [](Warpgroup& group) {
      OBEY(group.open.empty(), "products are waited for that are not committed");
      for (; group.groups.size() > kLeft; group.groups.pop_front())
        for (Product& product : group.groups.front()) finish(group, product);
      group.fenced = false;
    });
  }
  // Keeps a compiler from moving accesses to sums; compilers of the host know of every access.
  template <int kTiles>
  static void hold(float (*)[4]) {}
};

}  // namespace emulation
