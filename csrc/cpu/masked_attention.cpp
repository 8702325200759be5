// Masked attention on CPUs: the division of work between threads, and dispatch by instruction set.
//
// With many heads, a thread takes whole heads and packs into its own scratch. With few, all heads are packed first and their blocks
// shared out. Which thread does what never changes a result: the order of every sum is fixed by the shapes alone.
#include "jepa/masked_attention.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "jepa/isa.h"
#include "jepa/parallel.h"
#include "masked_attention/exact.h"
#include "masked_attention/kernels.h"
#include "masked_attention/validate.h"

namespace jepa {

AttentionKernels attention_kernels_avx2(DType);
AttentionKernels attention_kernels_avx512(DType);
AttentionKernels attention_kernels_avx512_bf16();

namespace {

constexpr int64_t kPackChunk = 256;         // keys that one work item packs
constexpr int64_t kWholeHeadsPerThread = 8;  // from this many heads a thread on, whole heads are the unit of work
constexpr int64_t kBackwardItems = 16;      // fewer heads than this are split by keys; a property of the shape, not of the threads

AttentionKernels kernels_for(DType dtype) {
#if defined(JEPA_HAVE_AVX512_BF16)
  if (active_isa() >= Isa::kAvx512Bf16 && dtype == DType::kBFloat16) return attention_kernels_avx512_bf16();
#endif
#if defined(JEPA_HAVE_AVX512)
  if (active_isa() >= Isa::kAvx512) return attention_kernels_avx512(dtype);
#endif
#if defined(JEPA_HAVE_AVX2)
  if (active_isa() >= Isa::kAvx2) return attention_kernels_avx2(dtype);
#endif
  return float_attention_kernels<Baseline>(dtype);
}

struct AlignedFree {
  void operator()(char* p) const { ::operator delete(p, std::align_val_t(64)); }
};
using Buffer = std::unique_ptr<char, AlignedFree>;

Buffer allocate(int64_t bytes) {
  return Buffer(static_cast<char*>(::operator new(static_cast<size_t>(std::max<int64_t>(bytes, 64)), std::align_val_t(64))));
}

int64_t aligned(int64_t bytes) { return round_up(bytes, 64); }

// body(worker, i) for i in [0, count); a worker index is in use by one thread at a time, so it can name a scratch buffer.
template <typename Body>
void for_each_item(int64_t count, int num_threads, const Body& body) {
  const int64_t workers = std::min<int64_t>(count, num_threads);
  std::atomic<int64_t> next{0};
  parallel_for(workers, num_threads, [&](int64_t worker) {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) body(worker, i);
  });
}

struct Item {
  size_t problem;
  int64_t part;
};

using Problems = std::vector<AttentionProblem>;

template <typename Count>
std::vector<Item> items(const Problems& problems, const Count& count) {
  std::vector<Item> list;
  for (size_t i = 0; i < problems.size(); ++i)
    for (int64_t part = count(problems[i]) - 1; part >= 0; --part) list.push_back({i, part});  // longest first when frame-causal
  return list;
}

template <typename Bytes>
int64_t largest(const Problems& problems, const Bytes& bytes) {
  int64_t most = 0;
  for (const AttentionProblem& p : problems) most = std::max(most, aligned(bytes(p)));
  return most;
}

template <typename Bytes>
std::vector<int64_t> offsets(const Problems& problems, const Bytes& bytes) {
  std::vector<int64_t> list(problems.size() + 1, 0);
  for (size_t i = 0; i < problems.size(); ++i) list[i + 1] = list[i] + aligned(bytes(problems[i]));
  return list;
}

bool use_whole_heads(const Problems& problems, int num_threads) {
  return num_threads == 1 || static_cast<int64_t>(problems.size()) >= kWholeHeadsPerThread * num_threads;
}

int64_t pack_chunks(const AttentionProblem& p) { return (p.keys + kPackChunk - 1) / kPackChunk; }

int64_t chunk_end(const AttentionProblem& p, int64_t chunk) { return std::min(p.keys, (chunk + 1) * kPackChunk); }

// Takes out the problems whose backward needs the exact path, and runs them.
Problems run_exact_backward(const Problems& problems, DType dtype, int num_threads) {
  std::vector<uint8_t> exact(problems.size(), 0);
  for_each_item(static_cast<int64_t>(problems.size()), num_threads, [&](int64_t, int64_t i) {
    const AttentionProblem& p = problems[static_cast<size_t>(i)];
    if (!p.is_masked() || backward_inputs_are_finite(p, dtype)) return;
    exact[static_cast<size_t>(i)] = 1;
    attention_backward_exact(p, dtype);
  });
  Problems rest;
  for (size_t i = 0; i < problems.size(); ++i)
    if (exact[i] == 0) rest.push_back(problems[i]);
  return rest;
}

void sort_longest_first(Problems& problems) {
  std::stable_sort(problems.begin(), problems.end(), [](const AttentionProblem& a, const AttentionProblem& b) {
    return a.queries * a.keys > b.queries * b.keys;
  });
}

void prefetch_rows(const Rows& rows, int64_t begin, int64_t end, int64_t row_bytes, int64_t item) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(rows.data + row * rows.stride * item + byte, 0, 2);
}

// Asks for one part of a head's rows. With heads inside tokens, a row's lines come one by one from far away: a thread spreads these
// requests over the work on the head before.
void prefetch_head(const AttentionProblem& p, DType dtype, int64_t part, int64_t parts, bool backward) {
  const int64_t item = item_size(dtype), row_bytes = p.dim * item;
  const int64_t key_begin = p.keys * part / parts, key_end = p.keys * (part + 1) / parts;
  const int64_t query_begin = p.queries * part / parts, query_end = p.queries * (part + 1) / parts;
  for (const Rows& rows : {p.k, p.v}) prefetch_rows(rows, key_begin, key_end, row_bytes, item);
  prefetch_rows(p.q, query_begin, query_end, row_bytes, item);
  if (!backward) return;
  for (const Rows& rows : {p.dout, p.out}) prefetch_rows(rows, query_begin, query_end, row_bytes, item);
}

void forward_whole_heads(const AttentionKernels& kernels, const Problems& problems, DType dtype, int num_threads) {
  const int64_t packed_bytes = largest(problems, kernels.forward_packed_bytes);
  const int64_t stride = packed_bytes + largest(problems, kernels.forward_scratch_bytes);
  const Buffer buffer = allocate(stride * num_threads);
  for_each_item(static_cast<int64_t>(problems.size()), num_threads, [&](int64_t worker, int64_t i) {
    const AttentionProblem& p = problems[static_cast<size_t>(i)];
    char* packed = buffer.get() + worker * stride;
    if (!kernels.forward_pack(p, packed, 0, p.keys)) return attention_forward_exact(p, dtype);
    const int64_t blocks = kernels.query_blocks(p), next = i + num_threads;
    for (int64_t block = 0; block < blocks; ++block) {
      if (next < static_cast<int64_t>(problems.size())) prefetch_head(problems[static_cast<size_t>(next)], dtype, block, blocks, false);
      kernels.forward_block(p, packed, block, packed + packed_bytes);
    }
  });
}

void forward_shared_heads(const AttentionKernels& kernels, const Problems& problems, DType dtype, int num_threads) {
  const std::vector<int64_t> packed_at = offsets(problems, kernels.forward_packed_bytes);
  const int64_t scratch_bytes = largest(problems, kernels.forward_scratch_bytes);
  const Buffer packed = allocate(packed_at.back()), scratch = allocate(scratch_bytes * num_threads);
  std::vector<std::atomic<bool>> exact(problems.size());
  const std::vector<Item> chunks = items(problems, pack_chunks);
  for_each_item(static_cast<int64_t>(chunks.size()), num_threads, [&](int64_t, int64_t i) {
    const Item item = chunks[static_cast<size_t>(i)];
    const AttentionProblem& p = problems[item.problem];
    if (!kernels.forward_pack(p, packed.get() + packed_at[item.problem], item.part * kPackChunk, chunk_end(p, item.part)))
      exact[item.problem] = true;
  });
  const std::vector<Item> blocks = items(problems, kernels.query_blocks);
  for_each_item(static_cast<int64_t>(blocks.size()), num_threads, [&](int64_t worker, int64_t i) {
    const Item item = blocks[static_cast<size_t>(i)];
    const AttentionProblem& p = problems[item.problem];
    if (!exact[item.problem])
      kernels.forward_block(p, packed.get() + packed_at[item.problem], item.part, scratch.get() + worker * scratch_bytes);
    else if (item.part == 0)
      attention_forward_exact(p, dtype);
  });
}

// The keys of one problem in equal runs of whole key blocks.
struct KeySplit {
  int64_t count, blocks;

  KeySplit(const AttentionProblem& p, size_t problems) {
    blocks = (p.keys + kKeyBlock - 1) / kKeyBlock;
    const int64_t wanted = (kBackwardItems + static_cast<int64_t>(problems) - 1) / static_cast<int64_t>(problems);
    count = std::max<int64_t>(1, std::min(wanted, blocks / 2));
  }
  int64_t begin(const AttentionProblem& p, int64_t split) const { return std::min(p.keys, blocks * split / count * kKeyBlock); }
};

// `before_block(key)` is called before each block of keys.
template <typename BeforeBlock>
void backward_split(const AttentionKernels& kernels, const AttentionProblem& p, const KeySplit& keys, int64_t split, const char* packed,
                    char* query_gradients, char* scratch, const BeforeBlock& before_block) {
  char* own = query_gradients + split * kernels.query_gradient_bytes(p);
  std::memset(own, 0, static_cast<size_t>(kernels.query_gradient_bytes(p)));
  const int64_t end = keys.begin(p, split + 1);
  for (int64_t key = keys.begin(p, split); key < end; key += kKeyBlock) {
    before_block(key);
    kernels.backward_keys(p, packed, key, std::min(end, key + kKeyBlock), own, scratch);
  }
}

void backward_whole_heads(const AttentionKernels& kernels, const Problems& problems, DType dtype, int num_threads) {
  const auto gradient_bytes = [&](const AttentionProblem& p) { return KeySplit(p, problems.size()).count * kernels.query_gradient_bytes(p); };
  const int64_t packed_bytes = largest(problems, kernels.backward_packed_bytes);
  const int64_t gradients = packed_bytes + largest(problems, kernels.backward_scratch_bytes);
  const int64_t stride = gradients + largest(problems, gradient_bytes);
  const Buffer buffer = allocate(stride * num_threads);
  for_each_item(static_cast<int64_t>(problems.size()), num_threads, [&](int64_t worker, int64_t i) {
    const AttentionProblem& p = problems[static_cast<size_t>(i)];
    char* packed = buffer.get() + worker * stride;
    char *scratch = packed + packed_bytes, *query_gradients = packed + gradients;
    kernels.backward_pack_keys(p, packed, 0, p.keys, scratch);
    const int64_t blocks = kernels.query_blocks(p);
    for (int64_t block = 0; block < blocks; ++block) kernels.backward_pack_queries(p, packed, block, scratch);
    const KeySplit keys(p, problems.size());
    const int64_t next = i + num_threads;
    const auto prefetch = [&](int64_t key) {
      if (next >= static_cast<int64_t>(problems.size())) return;
      prefetch_head(problems[static_cast<size_t>(next)], dtype, key / kKeyBlock, keys.blocks, true);
    };
    for (int64_t split = 0; split < keys.count; ++split)
      backward_split(kernels, p, keys, split, packed, query_gradients, scratch, prefetch);
    for (int64_t block = 0; block < blocks; ++block)
      kernels.backward_finish(p, query_gradients, static_cast<int>(keys.count), block, scratch);
  });
}

void backward_shared_heads(const AttentionKernels& kernels, const Problems& problems, int num_threads) {
  const auto split_of = [&](const AttentionProblem& p) { return KeySplit(p, problems.size()); };
  const std::vector<int64_t> packed_at = offsets(problems, kernels.backward_packed_bytes);
  const std::vector<int64_t> gradients_at =
      offsets(problems, [&](const AttentionProblem& p) { return split_of(p).count * kernels.query_gradient_bytes(p); });
  const int64_t scratch_bytes = largest(problems, kernels.backward_scratch_bytes);
  const Buffer packed = allocate(packed_at.back()), query_gradients = allocate(gradients_at.back());
  const Buffer scratch = allocate(scratch_bytes * num_threads);
  const auto packed_of = [&](size_t problem) { return packed.get() + packed_at[problem]; };
  const auto run = [&](const std::vector<Item>& list, const auto& body) {
    for_each_item(static_cast<int64_t>(list.size()), num_threads, [&](int64_t worker, int64_t i) {
      const Item item = list[static_cast<size_t>(i)];
      body(item, problems[item.problem], scratch.get() + worker * scratch_bytes);
    });
  };
  run(items(problems, pack_chunks), [&](const Item& item, const AttentionProblem& p, char* own) {
    kernels.backward_pack_keys(p, packed_of(item.problem), item.part * kPackChunk, chunk_end(p, item.part), own);
  });
  run(items(problems, kernels.query_blocks), [&](const Item& item, const AttentionProblem& p, char* own) {
    kernels.backward_pack_queries(p, packed_of(item.problem), item.part, own);
  });
  run(items(problems, [&](const AttentionProblem& p) { return split_of(p).count; }),
      [&](const Item& item, const AttentionProblem& p, char* own) {
        backward_split(kernels, p, split_of(p), item.part, packed_of(item.problem), query_gradients.get() + gradients_at[item.problem], own,
                       [](int64_t) {});
      });
  run(items(problems, kernels.query_blocks), [&](const Item& item, const AttentionProblem& p, char* own) {
    kernels.backward_finish(p, query_gradients.get() + gradients_at[item.problem], static_cast<int>(split_of(p).count), item.part, own);
  });
}

// Keys past a sequence's length get zero gradients.
void clear_padding(const Problems& problems, DType dtype) {
  for (const AttentionProblem& p : problems)
    for (int64_t key = p.keys; key < p.key_rows; ++key)
      for (const Rows& rows : {p.dk, p.dv})
        std::memset(rows.data + key * rows.stride * item_size(dtype), 0, static_cast<size_t>(p.dim * item_size(dtype)));
}

}  // namespace

void masked_attention_forward_cpu(const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& out,
                                  const TensorView& lse, const MaskedAttentionOptions& options) {
  AttentionTensors tensors{q, k, v, out, lse, {}, {}, {}, {}, false};
  Problems problems = attention_problems(tensors, options);
  if (problems.empty()) return;
  sort_longest_first(problems);
  const AttentionKernels kernels = kernels_for(q.dtype);
  if (use_whole_heads(problems, options.num_threads))
    forward_whole_heads(kernels, problems, q.dtype, options.num_threads);
  else
    forward_shared_heads(kernels, problems, q.dtype, options.num_threads);
}

void masked_attention_backward_cpu(const TensorView& dout, const TensorView& q, const TensorView& k, const TensorView& v,
                                   const TensorView& out, const TensorView& lse, const TensorView& dq, const TensorView& dk,
                                   const TensorView& dv, const MaskedAttentionOptions& options) {
  AttentionTensors tensors{q, k, v, out, lse, dout, dq, dk, dv, true};
  Problems problems = attention_problems(tensors, options);
  clear_padding(problems, q.dtype);
  problems = run_exact_backward(problems, q.dtype, options.num_threads);
  if (problems.empty()) return;
  sort_longest_first(problems);
  const AttentionKernels kernels = kernels_for(q.dtype);
  if (use_whole_heads(problems, options.num_threads))
    backward_whole_heads(kernels, problems, q.dtype, options.num_threads);
  else
    backward_shared_heads(kernels, problems, options.num_threads);
}

}  // namespace jepa
