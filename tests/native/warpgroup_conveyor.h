// A small kernel of two warpgroups, one that has tiles copied and one that multiplies them, to check the emulation of warpgroups with:
// as it should be, or with one mistake in it.
#pragma once

#include <random>

#include "warpgroup_emulation.h"

using namespace emulation;

namespace {

struct alignas(16) Chunk {
  uint32_t word[4];
};
using Device = WarpgroupMachine<Chunk>;

std::mt19937 engine(7);

uint64_t descriptor_of(uint32_t start, int swizzle, uint32_t leading, uint32_t stride) {
  const uint64_t mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : 3;
  return start >> 4 | static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 | mode << 62;
}

void hold_memory(const std::vector<uint16_t>& values) {
  const auto* begin = reinterpret_cast<const unsigned char*>(values.data());
  block().memory = {{begin, begin + 2 * values.size(), false}};
}

// The mistakes that a kernel may make; each is noticed.
enum class Mistake {
  kNone,
  kNoWait,
  kLateWait,
  kWrongParity,
  kEarlyRelease,
  kNoExpectation,
  kSmallExpectation,
  kExtraArrival,
  kReusedLeft,
  kNoFence,
  kNoCommit,
  kNoProductWait,
  kSumsReadEarly,
  kSumsWrittenEarly,
  kNoRelease,
  kNoBarrierFence,
  kNoMeeting,
  kSecondBarrier,
  kBarrierOverwritten,
  kTwoDescriptors,
  kTwoStepOrders,
  kTileInside,
  kNarrowBox,
  kOutsideMemory,
  kUnfencedStore,
  kStoreIntoOperand,
  kOperandInsideRepeat,
  kNobodyWaits,
  kTooManyRegisters,
};

// sums [64, kColumns] = left [64, K] @ right [K, kColumns]: a warpgroup has right copied, two stages ahead, and another multiplies.
// Right lies in memory with k contiguous, or with columns contiguous (transposed).
template <typename Value, int kColumns, bool kTransposed, int kSwizzle>
struct Conveyor {
  // A stage: K-major, all columns by as many k as a row of the swizzle has; else 32 k of atoms of columns, one after the other.
  static constexpr int kStageK = kTransposed ? 32 : kSwizzle / 2, kAtoms = kTransposed ? 2 * kColumns / kSwizzle : 1;
  static constexpr int kBoxRows = kTransposed ? kStageK : kColumns, kTileBytes = kBoxRows * kSwizzle;
  static constexpr int kStageBytes = (kAtoms * kTileBytes + 1023) / 1024 * 1024, kStages = 2;
  static constexpr uint32_t kFull = kStages * kStageBytes, kEmpty = kFull + 8 * kStages, kBytes = kEmpty + 8 * kStages;
  static constexpr int kSteps = 5, kK = kSteps * kStageK - 5, kValidColumns = kColumns - 3, kRow = 512;

  Mistake mistake = Mistake::kNone;
  std::vector<uint16_t> values;        // of right; NaN around them
  std::vector<int> left, right;        // [64, kSteps * kStageK], [kK, kValidColumns]
  std::vector<float> result = std::vector<float>(64 * kColumns);
  TensorMap map{};

  static int small() { return static_cast<int>(engine() % 9) - 4; }

  Conveyor() {
    const int rows = kTransposed ? kK : kValidColumns, columns = kTransposed ? kValidColumns : kK;
    values.assign(static_cast<size_t>(rows * kRow), 0x7fff);
    left.resize(64 * kSteps * kStageK), right.resize(kK * kValidColumns);
    for (int& x : left) x = small();
    for (int& x : right) x = small();
    for (int k = 0; k < kK; ++k)
      for (int n = 0; n < kValidColumns; ++n)
        values[static_cast<size_t>(kTransposed ? k * kRow + n : n * kRow + k)] =
            jepa::Cast<Value>::from(static_cast<float>(right[static_cast<size_t>(k * kValidColumns + n)])).bits;
    map = {values.data(), {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), 1, 1}, {2 * kRow, 0, 0},
           {kSwizzle / 2, kBoxRows, 1, 1}, kSwizzle};
  }

  bool makes(Mistake which) const { return mistake == which; }

  void prepare() const {
    if (Device::thread() != 0) return;
    for (uint32_t stage = 0; stage < kStages; ++stage) {
      Device::init_barrier(kFull + 8 * stage, 1);
      Device::init_barrier(kEmpty + 8 * stage, 1);
    }
    if (!makes(Mistake::kNoBarrierFence)) Device::fence_barrier_init();
    if (makes(Mistake::kSecondBarrier)) Device::init_barrier(kFull, 1);
    if (makes(Mistake::kBarrierOverwritten)) shared_at(kEmpty)[3] = 1;
  }

  void produce() const {
    if (Device::thread() != 0) return;
    for (int step = 0; step < kSteps; ++step) {
      const auto stage = static_cast<uint32_t>(step % kStages);
      Device::wait(kEmpty + 8 * stage, static_cast<uint32_t>((step / kStages & 1) ^ 1));
      constexpr int kExpected = kAtoms * kTileBytes;
      if (makes(Mistake::kNoExpectation))
        Device::arrive(kFull + 8 * stage);
      else
        Device::arrive_expecting(kFull + 8 * stage, makes(Mistake::kSmallExpectation) ? kExpected - 16 : kExpected);
      if (makes(Mistake::kExtraArrival)) Device::arrive(kFull + 8 * stage), Device::arrive(kFull + 8 * stage);
      TensorMap from = map;
      if (makes(Mistake::kNarrowBox)) from.box[0] = 8;
      if (makes(Mistake::kOutsideMemory)) from.sizes[1] += 1;
      for (int atom = 0; atom < kAtoms; ++atom) {
        const uint32_t to = stage * kStageBytes + static_cast<uint32_t>(atom * kTileBytes) + (makes(Mistake::kTileInside) ? 128 : 0);
        if (kTransposed)
          Device::copy_tile(from, to, kFull + 8 * stage, atom * kSwizzle / 2, step * kStageK);
        else
          Device::copy_tile(from, to, kFull + 8 * stage, step * kStageK, 0, 0, 0);
      }
      if (makes(Mistake::kNobodyWaits) && step + 1 == kSteps) {  // once more, for nobody
        Device::wait(kFull + 8 * stage, static_cast<uint32_t>(step / kStages & 1));
        Device::arrive_expecting(kFull + 8 * stage, kTileBytes);
        Device::copy_tile(from, 0, kFull + 8 * stage, 0, 0);
      }
    }
  }

  void load_left(uint32_t (&out)[4], int thread, int k) const {
    for (int reg = 0; reg < 4; ++reg) {
      const int row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (reg % 2), column = k + 2 * (thread % 4) + 8 * (reg / 2);
      const int* const pair = left.data() + row * kSteps * kStageK + column;
      out[reg] = Device::pair<Value>(static_cast<float>(pair[0]), static_cast<float>(pair[1]));
    }
  }

  static uint64_t operand(uint32_t stage, int part) {
    const uint32_t start = stage * kStageBytes;
    if (kTransposed) return descriptor_of(start + static_cast<uint32_t>(part * 16 * kSwizzle), kSwizzle, kTileBytes, 8 * kSwizzle);
    return descriptor_of(start + static_cast<uint32_t>(part * 32), kSwizzle, 16, 8 * kSwizzle);
  }

  void release(int step, int thread) const {
    if (step >= 0 && thread == 0 && !makes(Mistake::kNoRelease)) Device::arrive(kEmpty + 8 * static_cast<uint32_t>(step % kStages));
  }

  void spoil_stage(uint32_t stage, int thread) const {
    if (thread == 7) Device::store_shared_16(shared_at(stage * kStageBytes), Chunk{});
  }

  void multiply_stage(float (&sums)[kColumns / 8][4], uint32_t (&operands)[kStageK / 16][4], int step, int thread) const {
    const auto stage = static_cast<uint32_t>(step % kStages);
    for (int part = 0; part < kStageK / 16; ++part) load_left(operands[part], thread, step * kStageK + 16 * part);
    if (!makes(Mistake::kNoFence)) Device::fence_products();
    for (int part = 0; part < kStageK / 16; ++part) {
      uint64_t right_operand = operand(stage, part);
      if (makes(Mistake::kTwoDescriptors) && thread == 64) right_operand += 2;
      if (makes(Mistake::kOperandInsideRepeat)) right_operand += 8;
      // The very first twice: a product that does not accumulate replaces what another in flight will have written.
      for (int i = step + part == 0 ? 0 : 1; i < 2; ++i)
        Device::multiply<Value, kColumns, kTransposed>(sums, operands[part], right_operand, step + part > 0);
      if (makes(Mistake::kReusedLeft)) operands[part][2] ^= 1;
      if (makes(Mistake::kSumsWrittenEarly) && part == 0) sums[0][1] += 1.0f;
    }
    if (!makes(Mistake::kNoCommit)) Device::commit_products();
    if (makes(Mistake::kTwoStepOrders) && thread == 100) Device::fence_products();
    if (makes(Mistake::kStoreIntoOperand)) spoil_stage(stage, thread);
  }

  void consume() {
    const int thread = Device::thread() % 128;
    float sums[kColumns / 8][4];
    uint32_t operands[2][kStageK / 16][4];  // of the product in flight, and of the next
    for (int step = 0; step < kSteps; ++step) {
      const auto stage = static_cast<uint32_t>(step % kStages);
      const auto parity = static_cast<uint32_t>(step / kStages & 1) ^ (makes(Mistake::kWrongParity) ? 1 : 0);
      if (!makes(Mistake::kNoWait) && !makes(Mistake::kLateWait)) Device::wait(kFull + 8 * stage, parity);
      if (makes(Mistake::kUnfencedStore)) {
        spoil_stage(stage, thread);
        Device::synchronise_warpgroup(1);
      }
      multiply_stage(sums, operands[step % 2], step, thread);
      if (makes(Mistake::kLateWait)) Device::wait(kFull + 8 * stage, parity);
      if (makes(Mistake::kEarlyRelease)) {
        release(step, thread);
        Device::wait_for_products<1>();
      } else {
        Device::wait_for_products<1>();
        release(step - 1, thread);
      }
    }
    if (makes(Mistake::kSumsReadEarly)) write(sums, thread);
    if (!makes(Mistake::kNoProductWait)) Device::wait_for_products<0>();
    Device::synchronise_warpgroup(1);
    if (!makes(Mistake::kSumsReadEarly)) write(sums, thread);
  }

  void write(const float (&sums)[kColumns / 8][4], int thread) {
    for (int tile = 0; tile < kColumns / 8; ++tile)
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2), column = 8 * tile + 2 * (thread % 4) + i % 2;
        result[static_cast<size_t>(row * kColumns + column)] = sums[tile][i];
      }
  }

  void run(Schedule schedule) {
    hold_memory(values);
    block().schedule = schedule;
    std::fill(result.begin(), result.end(), -12345.0f);
    run_warpgroups(256, kBytes, [this] {
      prepare();
      if (!makes(Mistake::kNoMeeting)) Device::synchronise();
      if (Device::thread() < 128) {
        makes(Mistake::kTooManyRegisters) ? Device::release_registers<112>() : Device::release_registers<104>();
        produce();
      } else {
        Device::claim_registers<152>();
        consume();
      }
    }, 128);
  }

  void check() const {
    for (int row = 0; row < 64; ++row)
      for (int n = 0; n < kColumns; ++n) {
        int sum = 0;
        for (int k = 0; k < kK && n < kValidColumns; ++k)
          sum += left[static_cast<size_t>(row * kSteps * kStageK + k)] * right[static_cast<size_t>(k * kValidColumns + n)];
        REQUIRE(result[static_cast<size_t>(row * kColumns + n)] == static_cast<float>(sum));
      }
  }
};

}  // namespace
