// SIGReg's characteristic-function sums on CPUs: checks, work spread over threads, dispatch by instruction set.
#include "jepa/sigreg.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "jepa/isa.h"
#include "jepa/parallel.h"
#include "sigreg_kernel.h"

namespace jepa {

SigregKernels sigreg_kernels_avx2(DType);
SigregKernels sigreg_kernels_avx512(DType);

namespace {

// Samples whose gradient is computed together, at most: the directions are read once for them. Results do not depend on it.
constexpr int64_t kTogetherAtMost = 64;
constexpr int64_t kPanelsTogether = 16, kBytesTogether = int64_t{1} << 22;

SigregKernels kernels(DType dtype) {
  if (dtype == DType::kFloat64) return kKernelsOf<DoubleLanes, double>;
#if defined(JEPA_HAVE_AVX512)
  if (active_isa() >= Isa::kAvx512) return sigreg_kernels_avx512(dtype);
#endif
#if defined(JEPA_HAVE_AVX2)
  if (active_isa() >= Isa::kAvx2) return sigreg_kernels_avx2(dtype);
#endif
  return float_kernels(dtype);
}

void check_contiguous(const TensorView& view, int ndim, const char* name) {
  check_view(view, name);
  check_ndim(view, ndim, name);
  if (!view.is_contiguous()) fail(std::string(name) + ": must be contiguous");
}

DType arithmetic(DType dtype) { return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

SigregTask checked_task(const TensorView& x, const TensorView& directions, int64_t points, double step) {
  check_contiguous(x, 3, "sigreg: x");
  check_contiguous(directions, 2, "sigreg: directions");
  const DType dtype = x.dtype;
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64 && dtype != DType::kBFloat16 && dtype != DType::kFloat16)
    fail(std::string("sigreg: x: ") + name_of(dtype) + " is not a floating type");
  check_dtype(directions, dtype, "sigreg: directions");
  check_size(directions, 0, x.sizes[2], "sigreg: directions");
  if (points < 1) fail("sigreg: at least one point is needed");
  SigregTask task{};
  task.directions = directions.data;
  task.dtype = dtype;
  task.samples = x.sizes[1];
  task.dim = x.sizes[2];
  task.slices = directions.sizes[1];
  task.points = points;
  task.step = dtype == DType::kFloat64 ? step : static_cast<double>(static_cast<float>(step));
  return task;
}

SigregTask checked_task(const TensorView& x, const TensorView& directions, const TensorView& sums, double step) {
  check_contiguous(sums, 4, "sigreg: sums");
  const SigregTask task = checked_task(x, directions, sums.sizes[2], step);
  check_dtype(sums, arithmetic(x.dtype), "sigreg: sums");
  check_size(sums, 0, x.sizes[0], "sigreg: sums");
  check_size(sums, 1, 2, "sigreg: sums");
  check_size(sums, 3, directions.sizes[1], "sigreg: sums");
  return task;
}

void check_like_x(const TensorView& grad_x, const TensorView& x, DType dtype) {
  check_contiguous(grad_x, 3, "sigreg: grad_x");
  check_dtype(grad_x, dtype, "sigreg: grad_x");
  for (int d = 0; d < 3; ++d) check_size(grad_x, d, x.sizes[d], "sigreg: grad_x");
}

// Address of the v-th part of a contiguous tensor.
char* part(const TensorView& view, int64_t v) { return view.as<char>() + v * (view.numel() / view.sizes[0]) * item_size(view.dtype); }

int64_t item_of_arithmetic(const SigregTask& task) { return task.dtype == DType::kFloat64 ? 8 : 4; }

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::unique_ptr<char[]> room_of(int64_t bytes) { return std::unique_ptr<char[]>(new char[static_cast<size_t>(bytes)]); }

// Samples of a share of the backward pass: two shares a thread, for balance.
int64_t samples_together(int64_t samples, int num_threads) {
  return std::max<int64_t>(kTileRows, std::min(kTogetherAtMost, divided_up(samples, 2 * std::max(num_threads, 1))));
}

// Memory for pieces of equal size that begin at cache lines.
class Pieces {
 public:
  Pieces(int64_t count, int64_t bytes) : bytes_(bytes), memory_(room_of(count * bytes + kCacheLine)), begin_(Room(memory_.get()).take<char>(0)) {}
  char* operator[](int64_t i) const { return begin_ + i * bytes_; }

 private:
  int64_t bytes_;
  std::unique_ptr<char[]> memory_;
  char* begin_;
};

// The statistic of one set, times task.of_value a slice, and its gradient. Panels are taken so many at a time that their gradients are
// kBytesTogether, or a share for each of many threads; the number does not depend on the threads, on which no result may depend.
double fit_set(const SigregTask& task, const SigregKernels& kernel, int num_threads) {
  const int64_t item = item_of_arithmetic(task), panels = divided_up(task.slices, kernel.panel);
  const int64_t of_panel = task.samples * kernel.panel * item;
  const int64_t at_once = std::min(panels, std::max(kPanelsTogether, kBytesTogether / of_panel));
  const Pieces gradients(at_once, of_panel), transposed(at_once, kernel.panel * kernel.width_of(task.dim) * item);
  const int64_t together = samples_together(task.samples, num_threads);
  std::vector<double> values(static_cast<size_t>(at_once));
  double value = 0;
  for (int64_t first = 0; first < panels; first += at_once) {
    const int64_t count = std::min(at_once, panels - first);
    parallel_for(count, num_threads, [&](int64_t i) {
      const std::unique_ptr<char[]> room = room_of(forward_room(task, item));
      SigregTask mine = task;
      mine.transposed = transposed[i];
      values[static_cast<size_t>(i)] = kernel.fit(mine, first + i, gradients[i], room.get());
    });
    parallel_for(divided_up(task.samples, together), num_threads, [&](int64_t i) {
      const std::unique_ptr<char[]> room = room_of(backward_room(task, together, item));
      SigregTask mine = task;
      mine.gradients = gradients[0];
      mine.transposed = transposed[0];
      kernel.join(mine, count, first > 0, i * together, std::min((i + 1) * together, task.samples), room.get());
    });
    for (int64_t i = 0; i < count; ++i) value += values[static_cast<size_t>(i)];
  }
  return value;
}

}  // namespace

void sigreg_forward_cpu(const TensorView& x, const TensorView& directions, const TensorView& sums, double step, int num_threads) {
  const SigregTask task = checked_task(x, directions, sums, step);
  const SigregKernels kernel = kernels(task.dtype);
  const int64_t panels = divided_up(task.slices, kernel.panel);
  parallel_for(x.sizes[0] * panels, num_threads, [&](int64_t i) {
    const std::unique_ptr<char[]> room = room_of(forward_room(task, item_of_arithmetic(task)));
    SigregTask mine = task;
    mine.x = part(x, i / panels);
    mine.sums = part(sums, i / panels);
    kernel.sum(mine, i % panels, room.get());
  });
}

void sigreg_backward_cpu(const TensorView& grad_sums, const TensorView& x, const TensorView& directions, const TensorView& grad_x,
                         double step, int num_threads) {
  const SigregTask task = checked_task(x, directions, grad_sums, step);
  check_like_x(grad_x, x, x.dtype);
  if (x.numel() == 0 || task.slices == 0) return;
  const int64_t item = item_of_arithmetic(task), together = samples_together(x.sizes[0] * task.samples, num_threads);
  const int64_t blocks = divided_up(task.samples, together);
  const SigregKernels kernel = kernels(task.dtype);
  const Pieces transposed(divided_up(task.slices, kernel.panel), kernel.panel * kernel.width_of(task.dim) * item);
  parallel_for(divided_up(task.slices, kernel.panel), num_threads, [&](int64_t i) {
    const std::unique_ptr<char[]> room = room_of(forward_room(task, item));
    SigregTask mine = task;
    mine.transposed = transposed[i];
    kernel.transpose(mine, i, room.get());
  });
  parallel_for(x.sizes[0] * blocks, num_threads, [&](int64_t i) {
    const std::unique_ptr<char[]> room = room_of(backward_room(task, together, item));
    SigregTask mine = task;
    mine.transposed = transposed[0];
    mine.x = part(x, i / blocks);
    mine.grad_sums = part(grad_sums, i / blocks);
    mine.grad_x = part(grad_x, i / blocks);
    const int64_t begin = i % blocks * together;
    kernel.differentiate(mine, begin, std::min(begin + together, task.samples), room.get());
  });
}

double sigreg_fit_cpu(const TensorView& x, const TensorView& directions, const TensorView& phi, const TensorView& weights,
                      const TensorView& grad_x, double step, int num_threads) {
  if (x.numel() == 0 || directions.numel() == 0) fail("sigreg: at least one sample, feature and slice is needed");
  check_contiguous(phi, 1, "sigreg: phi");
  check_contiguous(weights, 1, "sigreg: weights");
  SigregTask task = checked_task(x, directions, phi.sizes[0], step);
  check_dtype(phi, arithmetic(x.dtype), "sigreg: phi");
  check_dtype(weights, arithmetic(x.dtype), "sigreg: weights");
  check_size(weights, 0, phi.sizes[0], "sigreg: weights");
  check_like_x(grad_x, x, arithmetic(x.dtype));
  task.phi = phi.data;
  task.weights = weights.data;
  task.of_value = 1.0 / static_cast<double>(x.sizes[0] * task.slices);
  double value = 0;
  for (int64_t v = 0; v < x.sizes[0]; ++v) {
    task.x = part(x, v);
    task.grad_x = part(grad_x, v);
    value += fit_set(task, kernels(task.dtype), num_threads);
  }
  return value;
}

}  // namespace jepa
