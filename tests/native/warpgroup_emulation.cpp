// The emulation of warpgroups, checked against what was written down from the PTX manual by hand, and against plain products; and that
// it notices every mistake it is there for, each made once, in a process of its own.
#include "warpgroup_emulation.h"

#include <sys/wait.h>
#include <unistd.h>

#include <random>

using namespace emulation;

namespace {

struct alignas(16) Chunk {
  uint32_t word[4];
};
using Device = WarpgroupMachine<Chunk>;

std::mt19937 engine(7);

// Where the 16-byte chunks of 128 bytes go, from the manual's figures of the three swizzles; each repeats.
const std::vector<const char*> kLines32 = {"01234567", "10325476"};
const std::vector<const char*> kLines64 = {"01234567", "10325476", "23016745", "32107654"};
const std::vector<const char*> kLines128 = {"01234567", "10325476", "23016745", "32107654",
                                            "45670123", "54761032", "67452301", "76543210"};

const std::vector<const char*>& lines_of(int swizzle) { return swizzle == 32 ? kLines32 : swizzle == 64 ? kLines64 : kLines128; }

uint64_t descriptor_of(uint32_t start, int swizzle, uint32_t leading, uint32_t stride) {
  const uint64_t mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : 3;
  return start >> 4 | static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 | mode << 62;
}

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

void hold_memory(const std::vector<uint16_t>& values) {
  const auto* begin = reinterpret_cast<const unsigned char*>(values.data());
  block().memory = {{begin, begin + 2 * values.size(), false}};
}

const std::vector<Schedule> kSchedules = {{false, false, false}, {false, false, true}, {false, true, false}, {false, true, true},
                                          {true, false, false},  {true, false, true},  {true, true, false},  {true, true, true}};

// A copied box lies as the figures show, and beyond the tensor it holds zeros, on every side of every dimension.
void copied_tile(int swizzle, Schedule schedule) {
  constexpr int64_t kSizes[] = {75, 13, 3, 2}, kStrides[] = {88, 88 * 13, 88 * 13 * 3 + 8};  // elements
  std::vector<uint16_t> values(static_cast<size_t>(2 * kStrides[2]), 0x7fff);
  const auto number = [&](int64_t c, int64_t r, int64_t h, int64_t b) { return static_cast<uint16_t>(1 + c + 80 * (r + 13 * (h + 3 * b))); };
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
      Device::thread() < 128 ? produce() : consume();
    });
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
