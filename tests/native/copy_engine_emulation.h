// Barriers in shared memory and the copy engine of compute capability 9.0, for threads of block_emulation.h: what the PTX manual says of
// mbarrier, cp.async.bulk.tensor and proxies. What the manual leaves undefined ends the program.
#pragma once

#include "block_emulation.h"

namespace emulation {

// A tensor of 16-bit values and the box that a copy takes of it, dimensions innermost first.
struct TensorMap {
  const void* data;
  uint64_t sizes[4];    // elements; 1 in dimensions that are not there
  uint64_t strides[3];  // bytes, from the second dimension on
  uint32_t box[4];      // elements
  int swizzle;          // bytes of a row of the box: 32, 64 or 128
};

struct Barrier {
  int arrivals, pending;
  int64_t bytes = 0;  // expected, and not here yet
  uint32_t phase = 0;
  int initialised_by, synchronised;  // how often the block had met by then
  bool fenced = false;
};

struct TileCopy {
  TensorMap map;
  uint32_t to, barrier;
  int64_t first[4];
};

struct CopyEngine {
  std::map<uint32_t, Barrier> barriers;
  std::vector<TileCopy> under_way;
  // Which 16 bytes of shared memory hold a store that the asynchronous proxy does not see yet: 1 + the thread that wrote, or 0.
  std::vector<int16_t> unseen;
  std::vector<int16_t> readers;  // products in flight that read these 16 bytes
  std::vector<uint32_t> stored[kMaxThreads];
};

inline CopyEngine& copy_engine() {
  static CopyEngine instance;
  return instance;
}

constexpr int64_t kMaxBarrierCount = (1 << 20) - 1;  // of arrivals and of bytes
constexpr uint64_t kBarrierMark = 0x6d62617272696572;

// Bits 4 to 6 of an address are exchanged with bits 7 to 9 by exclusive or; the narrower patterns take two bits, or one.
inline uint32_t swizzled(uint32_t address, int bytes) {
  const uint32_t mask = static_cast<uint32_t>(bytes) / 16 - 1;
  return address ^ ((address >> 7 & mask) << 4);
}

// Addresses after which the pattern repeats.
inline uint32_t swizzle_repeat(int bytes) { return 8 * static_cast<uint32_t>(bytes); }

inline char* shared_at(uint32_t address) { return reinterpret_cast<char*>(shared_memory()) + address; }

inline Barrier& barrier_at(uint32_t address) {
  const auto found = copy_engine().barriers.find(address);
  OBEY(found != copy_engine().barriers.end(), "a barrier is used that nobody initialised");
  OBEY(std::memcmp(shared_at(address), &kBarrierMark, 8) == 0, "a barrier's memory was overwritten");
  Barrier& barrier = found->second;
  OBEY(barrier.initialised_by == block().current || barrier.synchronised < block().block.generation,
       "a barrier is used before the block met after its initialisation");
  return barrier;
}

inline void initialise_barrier(uint32_t address, int arrivals) {
  OBEY(address % 8 == 0 && address + 8 <= shared_bytes(), "a barrier is 8 aligned bytes of shared memory");
  OBEY(arrivals >= 1 && arrivals <= kMaxBarrierCount, "a barrier counts 1 to 2^20 - 1 arrivals");
  OBEY(copy_engine().barriers.count(address) == 0, "a barrier is initialised twice");
  copy_engine().barriers[address] = Barrier{arrivals, arrivals, 0, 0, block().current, block().block.generation, false};
  std::memcpy(shared_at(address), &kBarrierMark, 8);
}

inline void end_phase_if_complete(Barrier& barrier) {
  block().idle = 0;
  OBEY(std::abs(barrier.bytes) <= kMaxBarrierCount, "a barrier counts 2^20 - 1 bytes at most");
  if (barrier.pending > 0) return;
  OBEY(barrier.bytes >= 0, "more bytes came in a barrier's phase than it expects");
  if (barrier.bytes > 0) return;
  barrier.phase += 1;
  barrier.pending = barrier.arrivals;
}

inline void arrive_at(uint32_t address, int bytes) {
  Barrier& barrier = barrier_at(address);
  OBEY(barrier.pending > 0, "more threads arrive in a barrier's phase than it counts");
  OBEY(bytes >= 0, "bytes are expected, not taken back");
  barrier.pending -= 1;
  barrier.bytes += bytes;
  end_phase_if_complete(barrier);
}

inline void wait_at(uint32_t address, uint32_t parity) {
  const Barrier& barrier = barrier_at(address);
  OBEY(parity <= 1, "a parity is 0 or 1");
  while ((barrier.phase & 1) == parity) give_way({"the barrier at", address, parity});
}

inline void check_seen(uint32_t address) {
  OBEY(copy_engine().unseen[address / 16] == 0, "tensor cores or the copy engine touch what a thread stored without fence_proxy_async");
}

inline void check_unread(uint32_t address) {
  OBEY(copy_engine().readers[address / 16] == 0, "what a product in flight reads is overwritten");
}

inline void check_copy(const TileCopy& copy) {
  const TensorMap& map = copy.map;
  OBEY(map.swizzle == 32 || map.swizzle == 64 || map.swizzle == 128, "rows of a swizzled box are 32, 64 or 128 bytes");
  // A narrower box is legal, but the manual does not say where its rows begin.
  OBEY(2 * map.box[0] == static_cast<uint32_t>(map.swizzle), "a row of the box fills the swizzle");
  OBEY(reinterpret_cast<uintptr_t>(map.data) % 16 == 0, "a tensor of the copy engine is aligned to 16 bytes");
  for (const uint64_t stride : map.strides) OBEY(stride % 16 == 0 && stride < uint64_t{1} << 40, "strides are multiples of 16 bytes");
  for (const uint64_t size : map.sizes) OBEY(size >= 1 && size <= uint64_t{1} << 32, "a dimension has 1 to 2^32 elements");
  for (const uint32_t length : map.box) OBEY(length >= 1 && length <= 256, "a box has 1 to 256 elements a dimension");
  OBEY(copy.to % 128 == 0, "a copy's destination is aligned to 128 bytes");
  OBEY(copy.to % swizzle_repeat(map.swizzle) == 0, "a tile begins where its swizzle repeats");
}

inline uint32_t tile_bytes(const TensorMap& map) { return 2 * map.box[0] * map.box[1] * map.box[2] * map.box[3]; }

// One row of the box, 16 bytes at a time.
inline void copy_row(const TensorMap& map, const int64_t (&at)[4], uint32_t to) {
  bool inside = true;
  const char* from = static_cast<const char*>(map.data);
  for (int d = 1; d < 4; ++d) {
    inside = inside && at[d] >= 0 && at[d] < static_cast<int64_t>(map.sizes[d]);
    from += at[d] * static_cast<int64_t>(map.strides[d - 1]);
  }
  const int64_t begin = std::max<int64_t>(at[0], 0);
  const int64_t end = inside ? std::min<int64_t>(at[0] + map.box[0], static_cast<int64_t>(map.sizes[0])) : begin;
  if (end > begin) check_range(from + 2 * begin, static_cast<size_t>(2 * (end - begin)), false);
  for (uint32_t i = 0; i < map.box[0]; ++i) {
    const int64_t column = at[0] + i;
    uint16_t value = 0;
    if (column >= begin && column < end) std::memcpy(&value, from + 2 * column, 2);
    std::memcpy(shared_at(swizzled(to + 2 * i, map.swizzle)), &value, 2);
  }
}

inline void deliver(const TileCopy& copy) {
  const TensorMap& map = copy.map;
  for (uint32_t offset = 0; offset < tile_bytes(map); offset += 16) check_unread(copy.to + offset);
  uint32_t row = 0;
  for (uint32_t k = 0; k < map.box[3]; ++k)
    for (uint32_t j = 0; j < map.box[2]; ++j)
      for (uint32_t i = 0; i < map.box[1]; ++i, ++row)
        copy_row(map, {copy.first[0], copy.first[1] + i, copy.first[2] + j, copy.first[3] + k}, copy.to + row * 2 * map.box[0]);
  Barrier& barrier = copy_engine().barriers.at(copy.barrier);
  barrier.bytes -= tile_bytes(map);
  end_phase_if_complete(barrier);
}

inline void start_copy(const TileCopy& copy) {
  check_copy(copy);
  OBEY(copy.to + tile_bytes(copy.map) <= shared_bytes(), "a tile lies in shared memory");
  for (uint32_t offset = 0; offset < tile_bytes(copy.map); offset += 16) check_seen(copy.to + offset);
  OBEY(barrier_at(copy.barrier).fenced, "the copy engine does not see a barrier before fence_barrier_init");
  if (block().schedule.copies_at_once)
    deliver(copy);
  else
    copy_engine().under_way.push_back(copy);
}

// Copies that arrive late come one by one, when all threads wait; in which order is the engine's choice.
inline bool deliver_one() {
  std::vector<TileCopy>& under_way = copy_engine().under_way;
  if (under_way.empty()) return false;
  const auto chosen = block().schedule.reversed ? under_way.end() - 1 : under_way.begin();
  const TileCopy copy = *chosen;
  under_way.erase(chosen);
  deliver(copy);
  return true;
}

inline void store_shared(void* to, const void* chunk) {
  check_shared(to, 16);
  const uint32_t address = static_cast<uint32_t>(static_cast<char*>(to) - shared_at(0)), place = address / 16;
  check_unread(address);
  std::memcpy(to, chunk, 16);
  copy_engine().unseen[place] = static_cast<int16_t>(block().current + 1);
  copy_engine().stored[block().current].push_back(place);
}

inline void show_stores() {
  for (const uint32_t place : copy_engine().stored[block().current])
    if (copy_engine().unseen[place] == block().current + 1) copy_engine().unseen[place] = 0;
  copy_engine().stored[block().current].clear();
}

inline void prepare_copy_engine(size_t bytes) {
  copy_engine() = CopyEngine{};
  copy_engine().unseen.assign(bytes / 16, 0);
  copy_engine().readers.assign(bytes / 16, 0);
  block().relieve = deliver_one;
}

inline void check_copy_engine() {
  block().relieve = nullptr;
  block().current = -1;  // what follows is no single thread's doing
  OBEY(copy_engine().under_way.empty(), "a copy is under way when its block ends");
  for (const auto& [address, barrier] : copy_engine().barriers) OBEY(barrier.bytes == 0, "a barrier expects other bytes than came");
}

}  // namespace emulation
