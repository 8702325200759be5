// What a block of the patch embedding does on compute capability 9.0, thread by thread: a warpgroup gathers and normalises pixels while
// the copy engine brings the weight, and two warpgroups multiply what has arrived. Four stages of shared memory lie between them.
#pragma once

#include "patch_embed_gather.h"

namespace jepa {
namespace {

constexpr int kRows = 128, kColumns = 256, kStages = 4;
constexpr int kProducers = 128, kConsumers = 256, kThreads = kProducers + kConsumers;
constexpr int kPixelBytes = 2 * kRows * kStep, kWeightBytes = 2 * kColumns * kStep;  // of a stage
constexpr int kSwizzleBytes = 1024;                                                  // a tile's alignment
constexpr int kStageBytes = kStages * (kPixelBytes + kWeightBytes);
constexpr int kSharedBytes = kSwizzleBytes + kStageBytes + 2 * kRows * 8 + 2 * kStages * 8;
// Registers of a thread after the roles are known. A block of 384 threads starts with 168 each, 65536 / 384 rounded down to a multiple
// of 8: what the three warpgroups hold together may not exceed that, or the raise would wait for ever.
constexpr int kProducerRegisters = 120, kConsumerRegisters = 192;
static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 3 * 168, "the block's own registers");
static_assert(kSharedBytes <= 227 * 1024, "what a block may have on compute capability 9.0");
static_assert(4 * kRows * result_stride(kColumns) <= kStageBytes, "the sums take the place of the stages");

using ConsumerSums = float[kColumns / 8][4];  // 16 x 8 a tile and warp: rows lane / 4 and lane / 4 + 8, two columns from 2 (lane % 4) each

// The pixels that a producer brings in: one chunk of eight rows a stage, in batches of at most 32 words, each loaded while the one
// before it is converted.
template <typename Machine, typename Pixel, typename Value>
struct Producer {
  static constexpr int kBatch = sizeof(Pixel) == 1 ? 8 : 4;
  static constexpr int kBatches = kRows * kChunks / kProducers / kBatch;

  const PatchEmbedCall& call;
  const int64_t* origins;
  int thread, columns;
  bool adjacent;

  JEPA_DEVICE int row(int batch, int i) const { return thread / kChunks + 16 * (batch * kBatch + i); }

  JEPA_DEVICE void load(RawChunk<Pixel> (&raw)[kBatch], int step, int batch) const {
    const int k = step * kStep + thread % kChunks * kChunk;
    JEPA_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int64_t origin = origins[row(batch, i)];
      const Pixel* const first = static_cast<const Pixel*>(call.pixels) + origin;
      raw[i] = load_chunk<Machine>(first, origin >= 0, k, columns, adjacent, call.table);
    }
  }

  JEPA_DEVICE void store(const RawChunk<Pixel> (&raw)[kBatch], uint16_t* stage, int step, int batch) const {
    const int chunk = thread % kChunks;
    Moments moments[kChunk];
    load_moments<Machine>(moments, call.table, step * kStep + chunk * kChunk);
    JEPA_UNROLL
    for (int i = 0; i < kBatch; ++i)
      Machine::store_shared_16(stage + tile_element(row(batch, i), chunk),
                               normalised_chunk<Machine, Value>(raw[i], moments, call.pixel_dtype == DType::kBFloat16));
  }
};

template <typename Machine>
struct Shared {
  uint16_t* pixels;      // [kStages][kRows, kStep]
  uint16_t* weight;      // [kStages][kColumns, kStep]
  int64_t* patches;      // [kRows], -1 where there is none
  int64_t* origins;      // [kRows], elements; likewise
  uint32_t full, empty;  // addresses of kStages barriers each

  JEPA_DEVICE explicit Shared(unsigned char* start) {
    const uint32_t misfit = Machine::shared_address(start) % kSwizzleBytes;
    unsigned char* aligned = start + (misfit == 0 ? 0 : kSwizzleBytes - misfit);
    pixels = reinterpret_cast<uint16_t*>(aligned);
    weight = reinterpret_cast<uint16_t*>(aligned + kStages * kPixelBytes);
    patches = reinterpret_cast<int64_t*>(aligned + kStageBytes);
    origins = patches + kRows;
    full = Machine::shared_address(origins + kRows);
    empty = full + kStages * 8;
  }
};

template <typename Machine, typename Pixel, typename Value>
JEPA_DEVICE void produce(const PatchEmbedCall& call, const typename Machine::TensorMap& map, const Shared<Machine>& shared, int steps,
                         int first_column, int columns, bool adjacent) {
  using Pixels = Producer<Machine, Pixel, Value>;
  const int thread = Machine::thread();
  const Pixels producer{call, shared.origins, thread, columns, adjacent};
  RawChunk<Pixel> now[Pixels::kBatch], next[Pixels::kBatch];
  producer.load(now, 0, 0);
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    Machine::wait(shared.empty + 8 * stage, (step / kStages & 1) ^ 1);
    if (thread == 0) {
      const uint32_t to = Machine::shared_address(shared.weight) + stage * kWeightBytes;
      Machine::arrive_expecting(shared.full + 8 * stage, kWeightBytes);
      Machine::copy_tile(map, to, shared.full + 8 * stage, step * kStep, first_column);
    }
    JEPA_UNROLL
    for (int batch = 0; batch < Pixels::kBatches; ++batch) {
      const bool last = batch + 1 == Pixels::kBatches;
      producer.load(next, last ? step + 1 : step, last ? 0 : batch + 1);  // past the last column: nothing is read
      producer.store(now, shared.pixels + stage * (kPixelBytes / 2), step, batch);
      JEPA_UNROLL
      for (int i = 0; i < Pixels::kBatch; ++i) now[i] = next[i];
    }
    Machine::fence_proxy_async();  // the tensor cores read what ordinary stores wrote
    Machine::arrive(shared.full + 8 * stage);
  }
}

template <typename Machine, typename Value>
JEPA_DEVICE void consume(ConsumerSums& sums, const Shared<Machine>& shared, int steps, int group, int thread) {
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    Machine::wait(shared.full + 8 * stage, step / kStages & 1);
    const uint32_t pixels = Machine::shared_address(shared.pixels), weight = Machine::shared_address(shared.weight);
    const uint64_t left = swizzled_descriptor(pixels + stage * kPixelBytes + group * (kPixelBytes / 2));
    const uint64_t right = swizzled_descriptor(weight + stage * kWeightBytes);
    Machine::fence_products();
    JEPA_UNROLL
    for (int part = 0; part < kStep / 16; ++part)  // 16 columns are 32 bytes: 2 units of the descriptor's address
      Machine::template multiply_shared<Value, kColumns>(sums, left + 2 * part, right + 2 * part, step + part);
    Machine::commit_products();
    Machine::template wait_for_products<1>();  // of the stage before
    if (step > 0 && thread == 0) Machine::arrive(shared.empty + 8 * ((step - 1) % kStages));
  }
  Machine::template wait_for_products<0>();
}

// Sums by way of shared memory, so that neighbouring threads store neighbouring columns.
template <typename Machine, typename Value>
JEPA_DEVICE void store_sums(const PatchEmbedCall& call, const ConsumerSums& sums, const Shared<Machine>& shared, int64_t first_row,
                            int first_column, int consumer) {
  struct alignas(8) Pair {
    float x, y;
  };
  Machine::template synchronise_part<1, kConsumers>();  // both groups have read every stage: their memory takes the sums
  float* const results = reinterpret_cast<float*>(shared.pixels);
  const int warp_row = 64 * (consumer / 128) + 16 * (consumer % 128 / 32);
  JEPA_UNROLL
  for (int pair = 0; pair < kColumns / 4; ++pair) {
    const Place at = result_place(consumer % 32, pair);
    *reinterpret_cast<Pair*>(results + (warp_row + at.row) * result_stride(kColumns) + at.chunk) = {sums[pair / 2][2 * (pair % 2)],
                                                                                                   sums[pair / 2][2 * (pair % 2) + 1]};
  }
  Machine::template synchronise_part<1, kConsumers>();
  store_tokens<Machine, Value, kRows, kColumns, kConsumers>(call, results, shared.patches, first_row, first_column, consumer);
}

template <typename Machine, typename Pixel, typename Value>
JEPA_DEVICE void patch_embed_block(const PatchEmbedCall& call, const typename Machine::TensorMap& map, unsigned char* memory,
                                   unsigned block, bool adjacent) {
  const Shared<Machine> shared(memory);
  const int tiles_across = (call.width + kColumns - 1) / kColumns;
  const int64_t first_row = static_cast<int64_t>(block / tiles_across) * kRows;
  const int first_column = static_cast<int>(block % tiles_across) * kColumns;
  const int columns = call.geometry.columns(), steps = (columns + kStep - 1) / kStep;
  const unsigned thread = Machine::thread();

  if (thread < kRows) {
    const int64_t patch = patch_of<Machine>(call, first_row + thread);
    shared.patches[thread] = patch;
    shared.origins[thread] = patch < 0 ? -1 : patch_origin(call.geometry, patch);
  }
  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      Machine::init_barrier(shared.full + 8 * stage, kProducers + 1);  // every producer, and the copy's announcement
      Machine::init_barrier(shared.empty + 8 * stage, kConsumers / 128);
    }
    Machine::fence_barrier_init();
    Machine::fence_proxy_async();
  }
  Machine::synchronise();

  if (thread < kProducers) {
    Machine::template release_registers<kProducerRegisters>();
    produce<Machine, Pixel, Value>(call, map, shared, steps, first_column, columns, adjacent);
  } else {
    Machine::template claim_registers<kConsumerRegisters>();
    const int consumer = static_cast<int>(thread) - kProducers;
    ConsumerSums sums;
    consume<Machine, Value>(sums, shared, steps, consumer / 128, consumer % 128);
    store_sums<Machine, Value>(call, sums, shared, first_row, first_column, consumer);
  }
}

}  // namespace
}  // namespace jepa
