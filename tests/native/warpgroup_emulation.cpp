// The emulation of warpgroups, checked against what was written down from the PTX manual by hand, and against plain products; and that
// it notices every mistake it is there for, each made once, in a process of its own.
#include <sys/wait.h>
#include <unistd.h>

#include "warpgroup_conveyor.h"

using namespace emulation;

namespace {

// Where the 16-byte chunks of 128 bytes go, from the manual's figures of the three swizzles; each repeats.
const std::vector<const char*> kLines32 = {"01234567", "10325476"};
const std::vector<const char*> kLines64 = {"01234567", "10325476", "23016745", "32107654"};
const std::vector<const char*> kLines128 = {"01234567", "10325476", "23016745", "32107654",
                                            "45670123", "54761032", "67452301", "76543210"};

const std::vector<const char*>& lines_of(int swizzle) { return swizzle == 32 ? kLines32 : swizzle == 64 ? kLines64 : kLines128; }

// Addresses of single values, worked out on paper from the manual's canonical layouts and the figures above.
struct Position {
  int swizzle;
  bool transposed;
  uint32_t start, leading, stride;
  int n, k;
  uint32_t address;
};
const std::vector<Position> kPositions = {
    {128, false, 4096, 16, 1024, 0, 0, 4096},     {128, false, 4096, 16, 1024, 1, 0, 4240},
    {128, false, 4096, 16, 1024, 5, 8, 4800},     {128, false, 4096, 16, 1024, 10, 13, 5434},
    {128, false, 4128, 16, 1024, 3, 0, 4496},     {64, false, 4096, 16, 512, 1, 0, 4160},
    {64, false, 4096, 16, 512, 2, 8, 4224},       {64, false, 4096, 16, 512, 7, 0, 4592},
    {64, false, 4096, 16, 512, 9, 3, 4678},       {64, false, 4128, 16, 512, 4, 9, 4370},
    {32, false, 4096, 16, 256, 3, 8, 4208},       {32, false, 4096, 16, 256, 4, 0, 4240},
    {32, false, 4096, 16, 256, 6, 15, 4302},      {32, false, 4096, 16, 256, 12, 0, 4496},
    {128, true, 8192, 2048, 1024, 0, 1, 8336},    {128, true, 8192, 2048, 1024, 63, 0, 8318},
    {128, true, 8192, 2048, 1024, 64, 0, 10240},  {128, true, 8192, 2048, 1024, 75, 10, 11574},
    {64, true, 8192, 1024, 512, 5, 3, 8410},      {64, true, 8192, 1024, 512, 40, 8, 9744},
    {64, true, 8192, 1024, 512, 31, 7, 8654},     {32, true, 8192, 512, 256, 9, 2, 8274},
    {32, true, 8192, 512, 256, 0, 5, 8368},       {32, true, 8192, 512, 256, 20, 12, 9112},
};

void positions() {
  for (const Position& at : kPositions) {
    const Operand operand(descriptor_of(at.start, at.swizzle, at.leading, at.stride));
    operand.check(at.transposed, 128);
    REQUIRE(operand.address(at.transposed, at.n, at.k) == at.address);
  }
}

const std::vector<Schedule> kSchedules = {{false, false, false}, {false, false, true}, {false, true, false}, {false, true, true},
                                          {true, false, false},  {true, false, true},  {true, true, false},  {true, true, true}};

// A copied box lies as the figures show, and beyond the tensor it holds zeros, on every side of every dimension.
void copied_tile(int swizzle, Schedule schedule) {
  constexpr int64_t kSizes[] = {75, 13, 3, 2}, kStrides[] = {88, 88 * 13, 88 * 13 * 3 + 8};  // elements
  std::vector<uint16_t> values(static_cast<size_t>(2 * kStrides[2]), 0x7fff);
  const auto number = [](int64_t c, int64_t r, int64_t h, int64_t b) {
    return static_cast<uint16_t>(1 + c + 80 * (r + 13 * (h + 3 * b)));
  };
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 3; ++h)
      for (int64_t r = 0; r < 13; ++r)
        for (int64_t c = 0; c < 75; ++c)
          values[static_cast<size_t>(c + r * kStrides[0] + h * kStrides[1] + b * kStrides[2])] = number(c, r, h, b);
  hold_memory(values);
  const uint32_t columns = static_cast<uint32_t>(swizzle / 2), box[] = {columns, 5, 2, 2};
  const TensorMap map{values.data(), {75, 13, 3, 2}, {2 * kStrides[0], 2 * kStrides[1], 2 * kStrides[2]}, {columns, 5, 2, 2}, swizzle};
  block().schedule = schedule;
  for (const std::array<int, 4>& first : std::vector<std::array<int, 4>>{{0, 0, 0, 0}, {70, 10, 2, 1}, {-3, -2, -1, -1}, {80, 0, 0, 0}}) {
    const uint32_t bytes = 20 * static_cast<uint32_t>(swizzle), to = 2048, barrier = 16;
    run_warpgroups(128, 8192, [&] {
      if (Device::thread() == 0) {
        Device::init_barrier(barrier, 1);
        Device::fence_barrier_init();
      }
      Device::synchronise();
      if (Device::thread() == 5) {
        Device::arrive_expecting(barrier, static_cast<int>(bytes));
        Device::copy_tile(map, to, barrier, first[0], first[1], first[2], first[3]);
      }
      Device::wait(barrier, 0);
      if (Device::thread() != 9) return;
      const auto& lines = lines_of(swizzle);
      for (uint32_t byte = 0; byte < bytes; byte += 2) {
        const size_t line = byte / 128, repeated = line % lines.size();
        const auto chunk = static_cast<uint32_t>(lines[repeated][byte / 16 % 8] - '0');
        const uint32_t element = (128 * static_cast<uint32_t>(line) + 16 * chunk + byte % 16) / 2;  // of the box, in order
        int64_t at[4];
        bool inside = true;
        for (uint32_t d = 0, rest = element; d < 4; rest /= box[d], ++d) {
          at[d] = first[d] + static_cast<int64_t>(rest % box[d]);
          inside = inside && at[d] >= 0 && at[d] < kSizes[d];
        }
        uint16_t found;
        std::memcpy(&found, reinterpret_cast<const char*>(shared_memory()) + to + byte, 2);
        REQUIRE(found == (inside ? number(at[0], at[1], at[2], at[3]) : 0));
      }
    });
  }
}

template <typename Value, int kColumns, bool kTransposed, int kSwizzle>
void products() {
  Conveyor<Value, kColumns, kTransposed, kSwizzle> conveyor;
  for (const Schedule& schedule : kSchedules) {
    conveyor.run(schedule);
    conveyor.check();
  }
}

// What a process prints that runs `conveyor` with a mistake in it, in one schedule.
template <typename Program>
std::string output_of(Program program) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  std::fflush(stdout);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    dup2(ends[1], 1);
    close(ends[0]), close(ends[1]);
    program();
    std::printf("nothing noticed\n");
    std::fflush(stdout);
    std::_Exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(got));
  close(ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == (text == "nothing noticed\n" ? 0 : 1));
  return text;
}

struct Expectation {
  Mistake mistake;
  const char* message;
  int schedules;  // of the eight, in how many it is noticed at least
};
const char* const kWrong = "not so: result[";
const std::vector<Expectation> kMistakes = {
    {Mistake::kNoWait, "breaks a rule", 4},
    {Mistake::kLateWait, "what a product in flight reads is overwritten", 4},
    {Mistake::kWrongParity, "deadlock", 2},
    {Mistake::kEarlyRelease, "what a product in flight reads is overwritten", 4},
    {Mistake::kNoExpectation, "breaks a rule", 8},
    {Mistake::kSmallExpectation, "more bytes came in a barrier's phase than it expects", 4},
    {Mistake::kExtraArrival, "more threads arrive in a barrier's phase than it counts", 4},
    {Mistake::kReusedLeft, "the left operand of a product in flight was written", 8},
    {Mistake::kNoFence, "fence_products is missing", 8},
    {Mistake::kNoCommit, "products are waited for that are not committed", 8},
    {Mistake::kNoProductWait, "a thread ends with a product that is not waited for", 8},
    {Mistake::kSumsReadEarly, kWrong, 4},
    {Mistake::kSumsWrittenEarly, "sums of a product in flight were written", 8},
    {Mistake::kNoRelease, "1 threads wait for the barrier at", 8},
    {Mistake::kNoBarrierFence, "the copy engine does not see a barrier before fence_barrier_init", 8},
    {Mistake::kNoMeeting, "a barrier is used", 8},
    {Mistake::kSecondBarrier, "a barrier is initialised twice", 8},
    {Mistake::kBarrierOverwritten, "a barrier's memory was overwritten", 8},
    {Mistake::kTwoDescriptors, "the threads of a warpgroup issue one product", 8},
    {Mistake::kTwoStepOrders, "the threads of a warpgroup fence, commit and wait alike", 8},
    {Mistake::kTileInside, "a tile begins where its swizzle repeats", 8},
    {Mistake::kNarrowBox, "a row of the box fills the swizzle", 8},
    {Mistake::kOutsideMemory, "block().memory", 8},
    {Mistake::kUnfencedStore, "without fence_proxy_async", 8},
    {Mistake::kStoreIntoOperand, "what a product in flight reads is overwritten", 8},
    {Mistake::kOperandInsideRepeat, "an operand begins in the first row of an atom", 8},
    {Mistake::kNobodyWaits, "a copy is under way when its block ends", 4},
    {Mistake::kTooManyRegisters, "threads wait for registers of others", 8},
};

void mistakes() {
  for (const Expectation& expected : kMistakes) {
    int noticed = 0;
    std::string all;
    for (const Schedule& schedule : kSchedules) {
      const std::string text = output_of([&] {
        Conveyor<jepa::bf16, 64, false, 128> conveyor;
        conveyor.mistake = expected.mistake;
        conveyor.run(schedule);
        conveyor.check();
      });
      noticed += text.find(expected.message) != std::string::npos ? 1 : 0;
      all += text;
    }
    if (noticed < expected.schedules) std::printf("expected %d times \"%s\":\n%s", expected.schedules, expected.message, all.c_str());
    REQUIRE(noticed >= expected.schedules);
  }
}

}  // namespace

int main() {
  positions();
  for (const Schedule& schedule : kSchedules)
    for (const int swizzle : {32, 64, 128}) copied_tile(swizzle, schedule);
  products<jepa::bf16, 8, false, 128>();
  products<jepa::fp16, 64, false, 64>();
  products<jepa::bf16, 96, false, 32>();
  products<jepa::fp16, 256, false, 128>();
  products<jepa::bf16, 64, true, 128>();
  products<jepa::fp16, 128, true, 128>();
  products<jepa::fp16, 96, true, 64>();
  products<jepa::bf16, 16, true, 32>();
  products<jepa::bf16, 80, true, 32>();
  mistakes();
  std::printf("every check passed\n");
  return 0;
}
