// The CUDA attention without a GPU: the source of its blocks runs on the host, thread by thread. See block_emulation.h for what is checked
// on the way: bounds, alignment, banks, missing waits.
#include "masked_attention_block.h"

#include "attention_problem.h"

namespace {

using Device = emulation::Machine<Chunk>;

template <typename Value, typename Shape>
void attention() {
  for (const Case& c : kCases) {
    Problem<Value, Shape::kHeadDim> problem(c);
    problem.check_under({{false, false}, {false, true}, {true, false}, {true, true}}, Shape::kRows, [&](int64_t block, int tiles) {
      emulation::run_block(Shape::kSharedBytes / 2, [&] {
        attention_block<Device, Value, Shape>(problem.call, emulation::shared_memory(), block, tiles);
      });
    });
  }
}

// Keys rotated by their own kernel equal the definition bit for bit, in every head.
template <typename Value, int kHeadDim>
void keys(int heads) {
  Problem<Value, kHeadDim> problem({"", 2, heads, 21, 21, true, heads % 2 == 0, 1.0, 0, 0, {}, {}, 0});
  std::vector<uint16_t> result(problem.rotated_k.bits.size(), kPoison);
  HeadRows to = problem.rotated_k.rows;
  to.data = result.data();
  const RotateKeysCall call{problem.k.rows, to, {problem.cos.data(), problem.sin.data(), heads % 2 == 0 ? 21 * kHeadDim : 0},
                            DType::kBFloat16, 2, heads, 21, kHeadDim};
  auto& memory = emulation::block().memory;
  memory.clear();
  hold(memory, problem.packed.data(), 2 * problem.packed.size(), false);
  for (auto* table : {&problem.cos, &problem.sin}) hold(memory, table->data(), 4 * table->size(), false);
  hold(memory, result.data(), 2 * result.size(), true);
  for (int64_t item = 0; item < rotate_items(call) + 100; ++item) rotate_key_chunk<Device, Value>(call, item);
  REQUIRE(result == problem.rotated_k.bits);
}

// Accesses of 16 bytes by eight neighbouring threads, and of 4 bytes by a warp, touch every bank at most once.
template <int kHeadDim>
void banks() {
  using Shape = AttentionShape<kHeadDim, 1>;
  for (int first = 0; first < kAttentionThreads; first += 8) {
    std::set<int> groups;
    int active = 0;
    for (int thread = first; thread < first + 8; ++thread) {
      const int chunk = thread % Shape::kLanesPerRow;
      if (chunk >= Shape::kChunks) continue;
      active += 1;
      groups.insert(head_element<kHeadDim>(thread / Shape::kLanesPerRow, chunk) / kChunk % 8);
    }
    REQUIRE(static_cast<int>(groups.size()) == active);
  }
  for (int c = 0; c < Shape::kColumnTiles; ++c) {
    std::set<int> touched;
    for (int lane = 0; lane < 32; ++lane) touched.insert((head_element<kHeadDim>(lane / 4, c) / 2 + lane % 4) % 32);
    REQUIRE(touched.size() == 32);
  }
  std::set<int> places;  // a tile is covered once
  for (int row = 0; row < Shape::kKeys; ++row)
    for (int chunk = 0; chunk < Shape::kChunks; ++chunk) places.insert(head_element<kHeadDim>(row, chunk));
  REQUIRE(static_cast<int>(places.size()) == Shape::kKeys * Shape::kChunks && *places.rbegin() == Shape::kTileElements - kChunk);
}

template <int kHeadDim>
void head_dim() {
  banks<kHeadDim>();
  keys<bf16, kHeadDim>(5);
  keys<fp16, kHeadDim>(2);
  attention<bf16, AttentionShape<kHeadDim, 2>>();
  attention<fp16, AttentionShape<kHeadDim, 1>>();
}

}  // namespace

int main() {
  head_dim<HEAD_DIM>();
  std::printf("every check passed: %lld matrix loads, %lld products\n", static_cast<long long>(emulation::block().matrix_loads),
              static_cast<long long>(emulation::block().products));
  return 0;
}
