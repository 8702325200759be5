// SIGReg's characteristic-function sums on CPUs: checks, work spread over threads, dispatch by instruction set.
#include "jepa/sigreg.h"

#include <algorithm>
#include <memory>
#include <string>

#include "jepa/isa.h"
#include "jepa/parallel.h"
#include "sigreg_kernel.h"

namespace jepa {

SigregKernels sigreg_kernels_avx2(DType);
SigregKernels sigreg_kernels_avx512(DType);

namespace {

// Samples whose gradient is computed together, at most: the directions are read once for them. Their projections stay in a second-level
// cache, and every thread should have work. Results do not depend on it.
constexpr int64_t kTogetherAtMost = 64, kProjections = 1 << 16;

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

SigregTask checked_task(const TensorView& x, const TensorView& directions, const TensorView& sums, double step) {
  check_contiguous(x, 3, "sigreg: x");
  check_contiguous(directions, 2, "sigreg: directions");
  check_contiguous(sums, 4, "sigreg: sums");
  const DType dtype = x.dtype;
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64 && dtype != DType::kBFloat16 && dtype != DType::kFloat16)
    fail(std::string("sigreg: x: ") + name_of(dtype) + " is not a floating type");
  check_dtype(directions, dtype, "sigreg: directions");
  check_size(directions, 0, x.sizes[2], "sigreg: directions");
  check_dtype(sums, dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32, "sigreg: sums");
  check_size(sums, 0, x.sizes[0], "sigreg: sums");
  check_size(sums, 1, 2, "sigreg: sums");
  check_size(sums, 3, directions.sizes[1], "sigreg: sums");
  if (sums.sizes[2] < 1) fail("sigreg: sums: at least one point is needed");
  SigregTask task{};
  task.directions = directions.data;
  task.dtype = dtype;
  task.samples = x.sizes[1];
  task.dim = x.sizes[2];
  task.slices = directions.sizes[1];
  task.points = sums.sizes[2];
  task.step = dtype == DType::kFloat64 ? step : static_cast<double>(static_cast<float>(step));
  return task;
}

// Address of the v-th part of a contiguous tensor.
char* part(const TensorView& view, int64_t v) { return view.as<char>() + v * (view.numel() / view.sizes[0]) * item_size(view.dtype); }

int64_t item_of_arithmetic(const SigregTask& task) { return task.dtype == DType::kFloat64 ? 8 : 4; }

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

void sigreg_forward_cpu(const TensorView& x, const TensorView& directions, const TensorView& sums, double step, int num_threads) {
  const SigregTask task = checked_task(x, directions, sums, step);
  const SigregKernels kernel = kernels(task.dtype);
  const int64_t panels = divided_up(task.slices, kernel.panel);
  parallel_for(x.sizes[0] * panels, num_threads, [&](int64_t i) {
    const std::unique_ptr<char[]> room(new char[static_cast<size_t>(forward_room(task, item_of_arithmetic(task)))]);
    SigregTask mine = task;
    mine.x = part(x, i / panels);
    mine.sums = part(sums, i / panels);
    kernel.sum(mine, i % panels, room.get());
  });
}

void sigreg_backward_cpu(const TensorView& grad_sums, const TensorView& x, const TensorView& directions, const TensorView& grad_x,
                         double step, int num_threads) {
  const SigregTask task = checked_task(x, directions, grad_sums, step);
  check_contiguous(grad_x, 3, "sigreg: grad_x");
  check_dtype(grad_x, x.dtype, "sigreg: grad_x");
  for (int d = 0; d < 3; ++d) check_size(grad_x, d, x.sizes[d], "sigreg: grad_x");
  if (x.numel() == 0 || task.slices == 0) return;
  const int64_t fitting = std::min(kTogetherAtMost, kProjections / task.slices);
  const int64_t shared = divided_up(x.sizes[0] * task.samples, 2 * std::max(num_threads, 1));  // two shares a thread, for balance
  const int64_t together = std::max<int64_t>(kTileRows, std::min(fitting, shared));
  const int64_t blocks = divided_up(task.samples, together);
  const SigregKernels kernel = kernels(task.dtype);
  parallel_for(x.sizes[0] * blocks, num_threads, [&](int64_t i) {
    const std::unique_ptr<char[]> room(new char[static_cast<size_t>(backward_room(task, together, item_of_arithmetic(task)))]);
    SigregTask mine = task;
    mine.x = part(x, i / blocks);
    mine.grad_sums = part(grad_sums, i / blocks);
    mine.grad_x = part(grad_x, i / blocks);
    const int64_t begin = i % blocks * together;
    kernel.differentiate(mine, begin, std::min(begin + together, task.samples), room.get());
  });
}

}  // namespace jepa
