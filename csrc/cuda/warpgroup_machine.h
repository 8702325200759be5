// The instructions of compute capability 9.0, by the names that device source uses (see device_source.h): barriers in shared memory, the
// copy engine, and the asynchronous products of warpgroups.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "device_machine.h"
#include "patch_embed_wgmma.h"
#include "warpgroup_products.h"

namespace jepa {
namespace {

struct WarpgroupMachine : DeviceMachine {
  using TensorMap = CUtensorMap;

  static __device__ uint32_t shared_address(const void* pointer) { return jepa::shared_address(pointer); }
  static __device__ void store_shared_16(void* to, const Chunk& chunk) { store_16(to, chunk); }

  // A value that is the same in all lanes of the warp.
  static __device__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

  // Waits for kThreads threads. Barrier 0 is the block's own.
  template <int kBarrier, int kThreads>
  static __device__ void synchronise_part() {
    asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
  }
  // Waits for the 128 threads of a warpgroup, one of at most four; by numbers that the assembler knows, or it would set all sixteen
  // barriers aside.
  static __device__ void synchronise_warpgroup(int group) {
    switch (group) {
      case 0:
        return synchronise_part<1, 128>();
      case 1:
        return synchronise_part<2, 128>();
      case 2:
        return synchronise_part<3, 128>();
      default:
        return synchronise_part<4, 128>();
    }
  }

  // A warpgroup's threads keep this many registers each, and others of the block may claim the rest; or they wait until they have so
  // many.
  template <int kRegisters>
  static __device__ void release_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
  }
  template <int kRegisters>
  static __device__ void claim_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
  }

  // A barrier is 8 bytes of shared memory, named by its address. Its phase ends when all arrivals and all announced bytes have come.
  static __device__ void init_barrier(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
  }
  // Makes initialised barriers visible to the copy engine.
  static __device__ void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

  static __device__ void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
  }
  // Arrives, and announces bytes that the copy engine will bring in this phase.
  static __device__ void arrive_expecting(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
  }
  // Waits for the end of the phase of this parity: phases count from 0, and the one before the first has ended.
  static __device__ void wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra finished;\n"
        "bra again;\n"
        "finished:\n}\n" ::"r"(barrier), "r"(parity) : "memory");
  }

  // The map's box of a tensor from the given coordinates on, innermost first, to shared memory; zeros beyond the tensor. One thread calls.
  static __device__ void copy_tile(const CUtensorMap& map, uint32_t to, uint32_t barrier, int c0, int c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(reinterpret_cast<uint64_t>(&map)), "r"(c0), "r"(c1), "r"(barrier)
        : "memory");
  }
  static __device__ void copy_tile(const CUtensorMap& map, uint32_t to, uint32_t barrier, int c0, int c1, int c2, int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
        "l"(reinterpret_cast<uint64_t>(&map)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(barrier)
        : "memory");
  }

  // Between this thread's ordinary stores to shared memory and their reading by tensor cores or the copy engine.
  static __device__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

  // Between a warpgroup's accesses to registers and the first product that uses them.
  static __device__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

  template <typename Value, int kColumns, bool kTransposed>
  static __device__ void multiply(float (*sums)[4], const uint32_t (&left)[4], uint64_t right, bool add) {
    warpgroup_multiply_rows<Value, kColumns, kTransposed>(sums, left, right, add);
  }
  // Both operands in shared memory.
  template <typename Value, int kColumns>
  static __device__ void multiply_shared(float (*sums)[4], uint64_t left, uint64_t right, int add) {
    static_assert(kColumns == 256, "a product that is written down in patch_embed_wgmma.h");
    warpgroup_multiply<Value>(sums, left, right, add);
  }

  // Products issued since the last call become a group; all but the latest kLeft groups are waited for.
  static __device__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
  template <int kLeft>
  static __device__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
  }

  // The compiler moves no access to these sums across this point: it does not know how long a product is under way.
  template <int kTiles>
  static __device__ void hold(float (*sums)[4]) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      asm volatile("" : "+f"(sums[tile][0]), "+f"(sums[tile][1]), "+f"(sums[tile][2]), "+f"(sums[tile][3])::"memory");
  }
};

}  // namespace
}  // namespace jepa
