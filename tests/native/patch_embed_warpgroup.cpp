// The patch embedding of compute capability 9.0 without a GPU: the source of its blocks runs on the host, thread by thread, and every
// token is compared with float64. See warpgroup_emulation.h for what is checked on the way.
#include "patch_embed_warpgroup.h"

#include <random>

#include "warpgroup_emulation.h"

using namespace jepa;

namespace {

using Device = emulation::WarpgroupMachine<Chunk>;
constexpr uint16_t kPoison = 0x7fff;  // NaN in both types
constexpr int kGuard = 64;

std::mt19937 engine(7);
float normal() { return std::normal_distribution<float>()(engine); }

struct Case {
  const char* name;
  int batch, channels, patch_t, patch_h, patch_w, grid_t, grid_h, grid_w;
  bool interleaved;
  int margin;  // pixels beside the patches of a row, which make chunks adjacent or not
  int width;
  std::vector<int64_t> kept;  // patches, or none for all
  bool bias, moments, position, position_in_float, out_in_float;
};

// Tails in rows (128), columns (256, and 8) and k (64, and 8); more steps than stages, and fewer.
const std::vector<Case> kCases = {
    {"clips", 6, 3, 2, 8, 8, 1, 5, 5, false, 8, 264, {}, true, true, true, true, false},
    {"odd patches, kept", 2, 3, 1, 5, 7, 2, 3, 2, false, 0, 21, {23, 0, -1, 5, 5, 24, 1 << 20, 11}, false, true, false, false, true},
    {"decoder order", 15, 3, 1, 16, 16, 1, 3, 3, true, 0, 40, {}, true, true, true, false, false},
    {"one channel, apart", 1, 1, 1, 8, 8, 1, 2, 3, false, 3, 8, {3, 1, 7}, true, false, false, false, true},
};

template <typename T>
void hold(const std::vector<T>& values, size_t guard = 0, bool writable = false) {
  const auto* begin = reinterpret_cast<const unsigned char*>(values.data() + guard);
  emulation::block().memory.push_back({begin, begin + sizeof(T) * (values.size() - 2 * guard), writable});
}

template <typename Value>
DType dtype_of() {
  return std::is_same_v<Value, bf16> ? DType::kBFloat16 : DType::kFloat16;
}

// Storage of pixels: bytes, 16 bits of either type, or float32.
template <typename Pixel, bool kBFloat16>
struct PixelType {
  using Storage = Pixel;
  static constexpr DType kDType = sizeof(Pixel) == 1   ? DType::kUInt8
                                  : sizeof(Pixel) == 4 ? DType::kFloat32
                                  : kBFloat16          ? DType::kBFloat16
                                                       : DType::kFloat16;
  static Pixel random() {
    const float value = 100.0f + 50.0f * normal();
    if constexpr (sizeof(Pixel) == 1)
      return static_cast<Pixel>(engine() % 256);
    else if constexpr (sizeof(Pixel) == 4)
      return value;
    else
      return {kBFloat16 ? to_bf16(value).bits : to_fp16(value).bits};
  }
  static float value(Pixel x) {
    if constexpr (sizeof(Pixel) == 2)
      return kBFloat16 ? to_float(bf16{x.bits}) : to_float(fp16{x.bits});
    else
      return static_cast<float>(x);
  }
};

template <typename Type, typename Value>
struct Problem {
  Case c;
  PatchEmbedCall call{};
  std::vector<typename Type::Storage> pixels;
  std::vector<uint16_t> weight, bias, out;
  std::vector<uint16_t> position;
  std::vector<float> position_in_float, out_in_float, mean, std;
  std::vector<PatchColumn> table;
  emulation::TensorMap map{};

  explicit Problem(const Case& given) : c(given) {
    make_pixels();
    const PatchGeometry& g = call.geometry;
    const int columns = g.columns();
    call.width = c.width, call.weight_stride = (columns + 7) / 8 * 8, call.weight_dtype = dtype_of<Value>();
    weight.assign(static_cast<size_t>(c.width * call.weight_stride), 0);
    for (int d = 0; d < c.width; ++d)
      for (int k = 0; k < columns; ++k)
        weight[static_cast<size_t>(d * call.weight_stride + k)] = Cast<Value>::from(normal() / std::sqrt(static_cast<float>(columns))).bits;
    for (int channel = 0; channel < c.channels; ++channel) mean.push_back(110.0f - channel), std.push_back(57.0f + channel);
    for (int k = 0; k < (columns + kStep - 1) / kStep * kStep; ++k)
      table.push_back(patch_column(g, k, c.moments ? mean.data() : nullptr, c.moments ? std.data() : nullptr));
    for (int d = 0; d < c.width; ++d) bias.push_back(Cast<Value>::from(normal()).bits);
    for (int64_t i = 0; i < g.tokens() * c.width; ++i) {
      position_in_float.push_back(normal());
      position.push_back(Cast<Value>::from(position_in_float.back()).bits);
    }
    call.weight = weight.data(), call.table = table.data();
    call.bias = c.bias ? bias.data() : nullptr;
    call.pos_dtype = c.position_in_float ? DType::kFloat32 : dtype_of<Value>();
    if (c.position) call.pos_embed = c.position_in_float ? static_cast<const void*>(position_in_float.data()) : position.data();
    call.rows = c.kept.empty() ? nullptr : c.kept.data();
    call.num_rows = c.kept.empty() ? g.batch * g.tokens() : static_cast<int64_t>(c.kept.size());
    call.out_dtype = c.out_in_float ? DType::kFloat32 : dtype_of<Value>();
    map = {weight.data(), {static_cast<uint64_t>(call.weight_stride), static_cast<uint64_t>(c.width), 1, 1},
           {static_cast<uint64_t>(2 * call.weight_stride), 16, 16}, {kStep, kColumns, 1, 1}, 2 * kStep};
  }

  void make_pixels() {
    const int64_t frames = c.patch_t * c.grid_t, height = c.patch_h * c.grid_h, width = c.patch_w * c.grid_w + c.margin;
    const int64_t plane = frames * height * width;
    if (c.interleaved)
      call.geometry = {c.batch, c.channels, c.patch_t, c.patch_h, c.patch_w, c.grid_t, c.grid_h, c.grid_w,
                       plane * c.channels, 1, height * width * c.channels, width * c.channels, c.channels, true};
    else
      call.geometry = {c.batch, c.channels, c.patch_t, c.patch_h, c.patch_w, c.grid_t, c.grid_h, c.grid_w,
                       plane * c.channels, plane, height * width, width, 1, false};
    for (int64_t i = 0; i < c.batch * c.channels * plane; ++i) pixels.push_back(Type::random());
    call.pixels = pixels.data(), call.pixel_dtype = Type::kDType;
  }

  void run(emulation::Schedule schedule) {
    auto& memory = emulation::block().memory;
    emulation::block().schedule = schedule;
    memory.clear();
    const auto elements = static_cast<size_t>(call.num_rows * c.width);
    out.assign(c.out_in_float ? 0 : elements + 2 * kGuard, kPoison);
    out_in_float.assign(c.out_in_float ? elements + 2 * kGuard : 0, NAN);
    call.out = c.out_in_float ? static_cast<void*>(out_in_float.data() + kGuard) : out.data() + kGuard;
    c.out_in_float ? hold(out_in_float, kGuard, true) : hold(out, kGuard, true);
    hold(pixels), hold(weight), hold(bias), hold(position), hold(position_in_float), hold(c.kept), hold(table);
    const bool adjacent = chunks_are_adjacent(call.geometry, call.pixels, sizeof(typename Type::Storage));
    const int64_t tiles = (call.num_rows + kRows - 1) / kRows * ((c.width + kColumns - 1) / kColumns);
    const int offset = schedule.reversed ? 48 : 0;  // dynamic shared memory is promised 16 bytes of alignment
    for (unsigned block = 0; block < tiles; ++block)
      emulation::run_warpgroups(kThreads, kSharedBytes, [&] {
        auto* const shared = reinterpret_cast<unsigned char*>(emulation::shared_memory()) + offset;
        patch_embed_block<Device, typename Type::Storage, Value>(call, map, shared, block, adjacent);
      });
  }

  // A patch's pixels in the order that the operator defines, normalised in float32 and rounded once.
  std::vector<double> patch_values(int64_t patch) const {
    const PatchGeometry& g = call.geometry;
    const int64_t b = patch / g.tokens(), token = patch % g.tokens();
    const int64_t t0 = token / (g.grid_h * g.grid_w) * g.patch_t;
    const int64_t y0 = token / g.grid_w % g.grid_h * g.patch_h, x0 = token % g.grid_w * g.patch_w;
    std::vector<double> values;
    const auto put = [&](int channel, int64_t t, int64_t y, int64_t x) {
      const int64_t at = b * g.stride_b + channel * g.stride_c + (t0 + t) * g.stride_t + (y0 + y) * g.stride_h + (x0 + x) * g.stride_w;
      float value = Type::value(pixels[static_cast<size_t>(at)]);
      if (c.moments) value = (value - mean[static_cast<size_t>(channel)]) * (1.0f / std[static_cast<size_t>(channel)]);
      values.push_back(to_float(Cast<Value>::from(value)));
    };
    const int outer = c.interleaved ? 1 : c.channels, inner = c.interleaved ? c.channels : 1;
    for (int i = 0; i < outer; ++i)
      for (int t = 0; t < g.patch_t; ++t)
        for (int y = 0; y < g.patch_h; ++y)
          for (int x = 0; x < g.patch_w; ++x)
            for (int j = 0; j < inner; ++j) put(i + j, t, y, x);
    return values;
  }

  double found(int64_t row, int d) const {
    const auto at = static_cast<size_t>(kGuard + row * c.width + d);
    return c.out_in_float ? out_in_float[at] : to_float(Value{out[at]});
  }

  void check() const {
    const PatchGeometry& g = call.geometry;
    const double unit = c.out_in_float ? 0 : std::is_same_v<Value, bf16> ? 0x1p-8 : 0x1p-11;  // of rounding
    for (int64_t row = 0; row < call.num_rows; ++row) {
      const int64_t patch = c.kept.empty() ? row : c.kept[static_cast<size_t>(row)];
      const bool inside = patch >= 0 && patch < g.batch * g.tokens();
      const std::vector<double> values = inside ? patch_values(patch) : std::vector<double>();
      for (int d = 0; d < c.width; ++d) {
        double right = 0, size = 0;
        for (size_t k = 0; k < values.size(); ++k) {
          const double part = values[k] * to_float(Value{weight[static_cast<size_t>(d * call.weight_stride) + k]});
          right += part, size += std::fabs(part);
        }
        if (c.bias) right += to_float(Value{bias[static_cast<size_t>(d)]});
        const auto place = static_cast<size_t>((inside ? patch % g.tokens() : 0) * c.width + d);
        if (c.position) right += c.position_in_float ? position_in_float[place] : to_float(Value{position[place]});
        if (inside)
          REQUIRE(std::fabs(found(row, d) - right) <= 1.01 * unit * std::fabs(right) + 2e-6 * (size + 1));
        else
          REQUIRE(std::isnan(found(row, d)));
      }
    }
    for (size_t i = 0; i < kGuard; ++i)
      REQUIRE(c.out_in_float ? std::isnan(out_in_float[i]) && std::isnan(out_in_float[out_in_float.size() - 1 - i])
                             : out[i] == kPoison && out[out.size() - 1 - i] == kPoison);
  }
};

template <typename Type, typename Value>
void patch_embedding() {
  for (const Case& c : kCases) {
    Problem<Type, Value> problem(c);
    problem.run({false, false, false});
    problem.check();
    const auto first = problem.out;
    const auto first_in_float = problem.out_in_float;
    for (const emulation::Schedule& other : {emulation::Schedule{false, true, true}, {true, false, true}, {true, true, false}}) {
      problem.run(other);
      const size_t bytes = sizeof(float) * first_in_float.size();
      REQUIRE(problem.out == first && std::memcmp(problem.out_in_float.data(), first_in_float.data(), bytes) == 0);
    }
  }
}

}  // namespace

int main() {
  patch_embedding<PixelType<uint8_t, false>, bf16>();
  patch_embedding<PixelType<uint8_t, false>, fp16>();
  patch_embedding<PixelType<float, false>, bf16>();
  patch_embedding<PixelType<Half16, true>, bf16>();
  patch_embedding<PixelType<Half16, false>, fp16>();
  std::printf("every check passed: %lld products\n", static_cast<long long>(emulation::block().products));
  return 0;
}
