// Products of a linear layer in bfloat16 on CPUs: checks, cutting into chunks, work spread over threads.
#include "jepa/linear.h"

#include <memory>
#include <new>
#include <string>

#include "jepa/isa.h"
#include "jepa/parallel.h"
#include "linear_kernel.h"

namespace jepa {

LinearKernels linear_kernels_avx512_bf16();

namespace {

// Half of a second-level cache of 1 MiB holds the panels; the tiles of A that pass by take little.
constexpr int64_t kChunkBytes = 400 << 10;
// A tile of A and a panel of B beyond this length no longer stay in the nearer caches together.
constexpr int64_t kInnerBlock = 1536;
// Rows of an MLP whose hidden values are kept at a time: enough to make little of laying the weights out again.
constexpr int64_t kHiddenRows = 2048;

struct Aligned {
  void operator()(char* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<char, Aligned>;

Buffer buffer_of(int64_t bytes) { return Buffer(static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{64}))); }

// Memory of a thread that is kept from call to call, as fresh pages cost more than what is computed on them; not beyond this size, as
// it is held for good.
constexpr int64_t kKeptBytes = 64 << 20;

struct Kept {
  Buffer memory;
  int64_t bytes = 0;

  void give_back_excess() {
    if (bytes <= kKeptBytes) return;
    memory = nullptr;
    bytes = 0;
  }

  char* at_least(int64_t wanted) {
    if (bytes < wanted) {
      memory = nullptr;
      bytes = 0;
      memory = buffer_of(wanted);
      bytes = wanted;
    }
    return memory.get();
  }
};

LinearKernels kernels() {
#if defined(JEPA_HAVE_AVX512_BF16)
  if (active_isa() >= Isa::kAvx512Bf16) return linear_kernels_avx512_bf16();
#endif
  fail(std::string("linear: this processor or build has no AVX512_BF16; it has ") + name_of(active_isa()));
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

ProductPlan plan_of(const ProductTask& task, int num_threads) {
  ProductPlan plan{};
  const int64_t blocks = ceil_div(task.inner, kInnerBlock);
  plan.inner_block = ceil_div(ceil_div(task.inner, blocks), 32) * 32;
  const int64_t panels = ceil_div(task.columns, kPanelColumns), panel_bytes = plan.panel_elements() * static_cast<int64_t>(sizeof(bf16));
  int64_t chunks = ceil_div(panels, std::max<int64_t>(1, kChunkBytes / panel_bytes));
  chunks = std::min(panels, ceil_div(chunks, num_threads) * num_threads);  // the same work for every thread
  plan.panels_in_chunk = ceil_div(panels, chunks);
  plan.chunks = ceil_div(panels, plan.panels_in_chunk);
  return plan;
}

void run(const ProductTask& task, int num_threads) {
  if (task.rows == 0 || task.columns == 0) return;
  const LinearKernels functions = kernels();
  const ProductPlan plan = plan_of(task, num_threads);
  const int64_t bytes = plan.scratch_bytes(task);
  parallel_for(plan.chunks, num_threads, [&](int64_t chunk) {
    static thread_local Kept scratch;
    functions.run_chunk(task, plan, chunk, scratch.at_least(bytes));
    scratch.give_back_excess();
  });
}

// A matrix whose rows are contiguous.
void check_matrix(const TensorView& view, const char* name, int64_t rows = -1, int64_t columns = -1) {
  check_view(view, name);
  check_ndim(view, 2, name);
  if (rows >= 0) check_size(view, 0, rows, name);
  if (columns >= 0) check_size(view, 1, columns, name);
  if (view.strides[1] != 1) fail(std::string(name) + ": its rows must be contiguous");
}

void check_low(const TensorView& view, const char* name, int64_t rows = -1, int64_t columns = -1) {
  check_matrix(view, name, rows, columns);
  check_dtype(view, DType::kBFloat16, name);
}

void check_either(const TensorView& view, const char* name, int64_t rows = -1, int64_t columns = -1) {
  check_matrix(view, name, rows, columns);
  if (view.dtype != DType::kBFloat16) check_dtype(view, DType::kFloat32, name);
}

void check_vector(const TensorView& view, const char* name, int64_t size) {
  check_view(view, name);
  check_ndim(view, 1, name);
  check_dtype(view, DType::kFloat32, name);
  check_size(view, 0, size, name);
  if (view.strides[0] != 1) fail(std::string(name) + ": must be contiguous");
}

void check_multiple(int64_t size, int64_t of, const char* what) {
  if (size <= 0 || size % of != 0) fail(std::string("linear: ") + what + " is " + std::to_string(size) + "; it must be a multiple of " + std::to_string(of));
}

ProductTask task_of(const TensorView& a, const TensorView& b, bool b_transposed, const TensorView& c) {
  ProductTask task{};
  task.a = a.as<const bf16>();
  task.a_stride = a.strides[0];
  task.b = b.data;
  task.b_dtype = b.dtype;
  task.b_stride = b.strides[0];
  task.b_transposed = b_transposed;
  task.rows = c.sizes[0];
  task.columns = c.sizes[1];
  task.inner = b.sizes[b_transposed ? 1 : 0];
  task.c = c.data;
  task.c_dtype = c.dtype;
  task.c_stride = c.strides[0];
  return task;
}

void set_pre(ProductTask& task, const TensorView& pre, Epilogue epilogue, const char* name) {
  check_low(pre, name, task.rows, task.columns);
  task.pre = pre.as<bf16>();
  task.pre_stride = pre.strides[0];
  task.epilogue = epilogue;
}

// The bias of `task`: float32, one value a column.
void set_bias(ProductTask& task, const TensorView& bias) {
  if (!bias.defined()) return;
  check_vector(bias, "linear: bias", task.columns);
  task.bias = bias.as<const float>();
}

ProductTask forward_task(const TensorView& x, const TensorView& weight, const TensorView& bias, const TensorView& y) {
  check_low(x, "linear: x");
  check_either(weight, "linear: weight", -1, x.sizes[1]);
  check_either(y, "linear: y", x.sizes[0], weight.sizes[0]);
  check_multiple(x.sizes[1], 2, "the input width");
  check_multiple(weight.sizes[0], 16, "the output width");
  ProductTask task = task_of(x, weight, true, y);
  set_bias(task, bias);
  return task;
}

TensorView rows_of(const TensorView& view, int64_t first, int64_t count) {
  TensorView part = view;
  part.data = view.as<char>() + first * view.strides[0] * item_size(view.dtype);
  part.sizes[0] = count;
  part.storage_bytes -= first * view.strides[0] * item_size(view.dtype);
  return part;
}

}  // namespace

void linear_forward_cpu(const TensorView& x, const TensorView& weight, const TensorView& bias, bool gelu, const TensorView& pre,
                        const TensorView& y, int num_threads) {
  ProductTask task = forward_task(x, weight, bias, y);
  task.epilogue = gelu ? Epilogue::kGelu : Epilogue::kNone;
  if (pre.defined()) set_pre(task, pre, Epilogue::kGeluKeep, "linear: pre");
  run(task, num_threads);
}

void mlp_forward_cpu(const TensorView& x, const TensorView& weight1, const TensorView& bias1, const TensorView& weight2,
                     const TensorView& bias2, const TensorView& y, int num_threads) {
  check_low(x, "linear: x");
  check_either(weight1, "linear: weight", -1, x.sizes[1]);
  check_either(y, "linear: y", x.sizes[0]);
  static thread_local Kept kept;
  TensorView hidden = x;
  hidden.sizes[1] = hidden.strides[0] = weight1.sizes[0];
  hidden.storage_bytes = std::min(kHiddenRows, x.sizes[0]) * weight1.sizes[0] * item_size(x.dtype);
  hidden.data = kept.at_least(hidden.storage_bytes);
  for (int64_t first = 0; first < x.sizes[0]; first += kHiddenRows) {
    const int64_t count = std::min(kHiddenRows, x.sizes[0] - first);
    hidden.sizes[0] = count;
    ProductTask up = forward_task(rows_of(x, first, count), weight1, bias1, hidden);
    up.epilogue = Epilogue::kGelu;
    const ProductTask down = forward_task(hidden, weight2, bias2, rows_of(y, first, count));
    run(up, num_threads);
    run(down, num_threads);
  }
}

void linear_input_gradient_cpu(const TensorView& dy, const TensorView& weight, const TensorView& pre, const TensorView& dx,
                               int num_threads) {
  check_low(dy, "linear: dy");
  check_either(weight, "linear: weight", dy.sizes[1]);
  check_either(dx, "linear: dx", dy.sizes[0], weight.sizes[1]);
  check_multiple(dy.sizes[1], 2, "the output width");
  check_multiple(weight.sizes[1], 16, "the input width");
  ProductTask task = task_of(dy, weight, false, dx);
  if (pre.defined()) set_pre(task, pre, Epilogue::kGeluGradient, "linear: pre");
  run(task, num_threads);
}

void linear_weight_gradient_cpu(const TensorView& dy, const TensorView& x, const TensorView& dweight, const TensorView& dbias,
                                int num_threads) {
  check_low(dy, "linear: dy");
  check_low(x, "linear: x", dy.sizes[0]);
  check_either(dweight, "linear: dweight", dy.sizes[1], x.sizes[1]);
  check_multiple(dy.sizes[0], 1, "the number of rows");
  check_multiple(dy.sizes[1], 16, "the output width");
  check_multiple(x.sizes[1], 16, "the input width");
  if (dbias.defined()) check_vector(dbias, "linear: dbias", dy.sizes[1]);
  ProductTask task = task_of(dy, x, false, dweight);
  const LinearKernels functions = kernels();
  const int64_t inner_block = plan_of(task, num_threads).inner_block;
  static thread_local Kept packed;
  bf16* units = reinterpret_cast<bf16*>(packed.at_least(task.rows * (task.inner + task.inner % 2) * static_cast<int64_t>(sizeof(bf16))));
  float* sums = dbias.defined() ? dbias.as<float>() : nullptr;
  parallel_for(ceil_div(task.rows, kGroupRows), num_threads, [&](int64_t group) {
    functions.pack_left(task.a, task.a_stride, task.rows, task.inner, inner_block, group, units, sums);
  });
  task.a = units;
  task.a_packed = true;
  run(task, num_threads);
  packed.give_back_excess();
}

}  // namespace jepa
