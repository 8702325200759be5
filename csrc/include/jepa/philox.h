// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
// The same (key, counter) gives the same bits on every backend and for every number of threads.
#pragma once

#include <cstdint>

#include "jepa/float_types.h"

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

struct Philox4 {
  uint32_t word[4];
};

JEPA_HOST_DEVICE inline Philox4 philox4x32_10(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c0;
    const uint64_t p1 = 0xCD9E8D57ull * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox4{{c0, c1, c2, c3}};
}

// Eight 16-bit values a call: value `lane` (0..7) of the block that starts at element 8 * block.
JEPA_HOST_DEVICE inline uint32_t random16(const Philox4& block, int lane) {
  return (block.word[lane >> 1] >> (16 * (lane & 1))) & 0xffffu;
}

}  // namespace
}  // namespace jepa
