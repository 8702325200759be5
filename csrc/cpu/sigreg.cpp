// SIGReg's characteristic-function sums on CPUs: checks, blocks of slices spread over threads, dispatch by instruction set.
#include "jepa/sigreg.h"

#include <algorithm>
#include <string>
#include <vector>

#include "jepa/isa.h"
#include "jepa/parallel.h"
#include "sigreg_kernel.h"

namespace jepa {

void sigreg_slices_avx2(const SigregTask&, int64_t, int64_t, double*);
void sigreg_slices_avx512(const SigregTask&, int64_t, int64_t, double*);

namespace {

// Slices of one task. Each slice is summed by one thread over all samples, in order, so that nothing depends on the number of threads.
constexpr int64_t kBlock = 32;

using SlicesKernel = void (*)(const SigregTask&, int64_t, int64_t, double*);

void double_slices(const SigregTask& task, int64_t begin, int64_t end, double* room) {
  run_slices<DoubleLanes, double>(task, begin, end, room);
}

SlicesKernel slices_kernel(DType dtype) {
  if (dtype == DType::kFloat64) return double_slices;
#if defined(JEPA_HAVE_AVX512)
  if (active_isa() >= Isa::kAvx512) return sigreg_slices_avx512;
#endif
#if defined(JEPA_HAVE_AVX2)
  if (active_isa() >= Isa::kAvx2) return sigreg_slices_avx2;
#endif
  return float_slices;
}

void check_contiguous(const TensorView& view, int ndim, const char* name) {
  check_view(view, name);
  check_ndim(view, ndim, name);
  if (!view.is_contiguous()) fail(std::string(name) + ": must be contiguous");
}

// Contiguous but for the distance from point to point, as a block of slices has it.
void check_sums(const TensorView& sums) {
  check_view(sums, "sigreg: sums");
  check_ndim(sums, 4, "sigreg: sums");
  const int64_t row = sums.strides[2], points = sums.sizes[2];
  if (sums.strides[3] != 1 || row < sums.sizes[3] || sums.strides[1] != points * row || (sums.sizes[0] > 1 && sums.strides[0] != 2 * points * row))
    fail("sigreg: sums: must be contiguous, or a block of the last axis of a contiguous tensor");
}

SigregTask checked_task(const TensorView& projected, const TensorView& sums, double step) {
  check_contiguous(projected, 3, "sigreg: projected");
  check_sums(sums);
  const DType dtype = projected.dtype;
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64 && dtype != DType::kBFloat16 && dtype != DType::kFloat16)
    fail(std::string("sigreg: projected: ") + name_of(dtype) + " is not a floating type");
  check_dtype(sums, dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32, "sigreg: sums");
  check_size(sums, 0, projected.sizes[0], "sigreg: sums");
  check_size(sums, 1, 2, "sigreg: sums");
  check_size(sums, 3, projected.sizes[2], "sigreg: sums");
  if (sums.sizes[2] < 1) fail("sigreg: sums: at least one point is needed");
  SigregTask task{};
  task.dtype = dtype;
  task.samples = projected.sizes[1];
  task.slices = projected.sizes[2];
  task.points = sums.sizes[2];
  task.sums_stride = sums.strides[2];
  task.step = dtype == DType::kFloat64 ? step : static_cast<double>(static_cast<float>(step));
  return task;
}

// Address of the v-th set.
char* set_of(const TensorView& view, int64_t v) { return view.as<char>() + v * view.strides[0] * item_size(view.dtype); }

void run(const SigregTask& task, const TensorView& projected, const TensorView& sums, bool backward, int num_threads) {
  const int64_t sets = projected.sizes[0], blocks = (task.slices + kBlock - 1) / kBlock;
  if (sets == 0 || task.slices == 0) return;
  const SlicesKernel kernel = slices_kernel(task.dtype);
  parallel_for(sets * blocks, num_threads, [&](int64_t i) {
    std::vector<double> room(static_cast<size_t>(2 * task.points * kMaxSlices));
    SigregTask mine = task;
    mine.projected = set_of(projected, i / blocks);
    (backward ? mine.grad_sums : mine.sums) = set_of(sums, i / blocks);
    const int64_t begin = i % blocks * kBlock;
    kernel(mine, begin, std::min(begin + kBlock, task.slices), room.data());
  });
}

}  // namespace

void sigreg_forward_cpu(const TensorView& projected, const TensorView& sums, double step, int num_threads) {
  run(checked_task(projected, sums, step), projected, sums, false, num_threads);
}

void sigreg_backward_cpu(const TensorView& grad_sums, const TensorView& projected, double step, int num_threads) {
  const SigregTask task = checked_task(projected, grad_sums, step);
  if (projected.numel() > 0) run(task, projected, grad_sums, true, num_threads);
}

}  // namespace jepa
