// Instructions of compute capability 9.0 that C++ has no names for: barriers in shared memory, the copy engine, and what orders the
// asynchronous products of a warpgroup.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace jepa {
namespace {

// Waits for the 128 threads of a warpgroup, one of at most four. Barrier 0 is the block's own; numbers that the assembler knows, or it
// would set all sixteen aside.
__device__ inline void synchronise_warpgroup(int group) {
  switch (group) {
    case 0:
      asm volatile("bar.sync 1, 128;" ::: "memory");
      break;
    case 1:
      asm volatile("bar.sync 2, 128;" ::: "memory");
      break;
    case 2:
      asm volatile("bar.sync 3, 128;" ::: "memory");
      break;
    default:
      asm volatile("bar.sync 4, 128;" ::: "memory");
  }
}

// A warpgroup's threads keep this many registers each, and others of the block may claim the rest; or they wait until they have so many.
template <int kRegisters>
__device__ inline void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// A barrier is 8 bytes of shared memory, named by its address. Its phase ends when all arrivals and all announced bytes have come.
__device__ inline void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine.
__device__ inline void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and announces bytes that the copy engine will bring in this phase.
__device__ inline void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits for the end of the phase of this parity: phases count from 0, and the one before the first has ended.
__device__ inline void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n}\n" ::"r"(barrier), "r"(parity) : "memory");
}

// The map's box of a tensor from the given coordinates on, innermost first, to shared memory; zeros beyond the tensor. One thread calls.
__device__ inline void copy_tile(const CUtensorMap& map, uint32_t to, uint32_t barrier, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(c0), "r"(c1), "r"(barrier)
      : "memory");
}

__device__ inline void copy_tile(const CUtensorMap& map, uint32_t to, uint32_t barrier, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(barrier)
      : "memory");
}

// Between this thread's ordinary stores to shared memory and their reading by tensor cores or the copy engine.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Between a warpgroup's accesses to registers and the first product that uses them.
__device__ inline void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Products issued since the last call become a group; all but the latest kLeft groups are waited for.
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kLeft>
__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// The compiler moves no access to these sums across this point: it does not know how long a product is under way.
template <int kTiles>
__device__ inline void hold(float (*sums)[4]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
    asm volatile("" : "+f"(sums[tile][0]), "+f"(sums[tile][1]), "+f"(sums[tile][2]), "+f"(sums[tile][3])::"memory");
}

}  // namespace
}  // namespace jepa
