// The attention of compute capability 9.0 without a GPU: the source of its blocks runs on the host, thread by thread. See
// warpgroup_emulation.h for what is checked on the way: swizzles, descriptors, barriers, products and copies in flight.
#include "masked_attention_warpgroup.h"

#include "attention_problem.h"
#include "warpgroup_emulation.h"

namespace {

using Device = emulation::WarpgroupMachine<Chunk>;

// Enough keys that every slot of the ring is used again, with and without a last tile that is full; masks that end a warpgroup's keys
// before the block's, and leave the second warpgroup without queries.
const std::vector<Case> kLongCases = {
    {"long, rope", 1, 1, 70, 576, false, false, 0.2, 0, 0, {}, {}, 0},
    {"long frames", 1, 1, 420, 420, true, false, 0.2, 35, 0, {}, {}, 0},
    {"lengths at a tile's end", 2, 1, 60, 420, false, false, 0.2, 0, 0, {384, 385}, {}, 0},
    {"long ragged", 1, 1, 460, 460, true, false, 0.2, 0, 0, {}, {0, 1, 400, 450}, 399},
};

template <typename Value, typename Shape>
void attention(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    Problem<Value, Shape::kHeadDim> problem(c);
    const auto make = [](const void* data, const RowsPart& part) {
      emulation::TensorMap map{data, {}, {}, {}, 2 * part.box[0]};
      std::copy(part.sizes, part.sizes + 4, map.sizes);
      std::copy(part.strides, part.strides + 3, map.strides);
      std::copy(part.box, part.box + 4, map.box);
      return map;
    };
    const auto maps = key_value_maps<Shape, emulation::TensorMap>(problem.call, make);
    // {last thread first, copies at once, products at once}
    const auto schedules = {emulation::Schedule{false, false, false}, {false, true, true}, {true, false, true}, {true, true, false}};
    problem.check_under(schedules, Shape::kBlockRows, [&](int64_t block, int tiles) {
      const auto program = [&] {
        warpgroup_attention_block<Device, Value, Shape>(problem.call, maps, emulation::shared_memory(), block, tiles);
      };
      emulation::run_warpgroups(Shape::kThreads, (Shape::kSharedBytes + 15) / 16 * 16, program, Shape::kStartRegisters);
    });
  }
}

}  // namespace

int main() {
  using Shapes = WarpgroupShapes<HEAD_DIM>;
  attention<bf16, typename Shapes::Small>(kCases);
  attention<fp16, typename Shapes::Large>(kCases);
  attention<fp16, typename Shapes::Small>(kLongCases);
  attention<bf16, typename Shapes::Large>(kLongCases);
  std::printf("every check passed: %lld matrix loads, %lld products\n", static_cast<long long>(emulation::block().matrix_loads),
              static_cast<long long>(emulation::block().products));
  return 0;
}
