// Shares of the work over many tensors: large tensors cut into chunks, runs of small ones gathered into one share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace jepa {

struct Chunk {
  size_t tensor;
  int64_t begin, end;  // elements; begin is a multiple of the chunk length
};

class WorkItems {
 public:
  // Small enough that a share stays in its core's L2 and work balances, large enough to hide what a share costs to hand
  // out.
  static constexpr int64_t kChunk = 32768;

  void add(size_t tensor, int64_t numel) {
    for (int64_t begin = 0; begin < numel; begin += kChunk) {
      const int64_t end = std::min(begin + kChunk, numel);
      if (chunks_.empty() || open_elements_ + (end - begin) > kChunk) {
        first_chunk_.push_back(chunks_.size());
        open_elements_ = 0;
      }
      chunks_.push_back({tensor, begin, end});
      open_elements_ += end - begin;
    }
    elements_ += numel;
  }

  int64_t count() const { return static_cast<int64_t>(first_chunk_.size()); }
  int64_t elements() const { return elements_; }

  // Threads that pay: each should have about 0.1 ms of work, many times what it costs to wake and to wait for it.
  int threads(int available) const {
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(available, elements_ / kElementsOfThread)));
  }

  // The chunks of one share.
  const Chunk* begin(int64_t item) const { return chunks_.data() + first_chunk_[static_cast<size_t>(item)]; }
  const Chunk* end(int64_t item) const {
    const size_t next = static_cast<size_t>(item) + 1;
    return chunks_.data() + (next < first_chunk_.size() ? first_chunk_[next] : chunks_.size());
  }

 private:
  static constexpr int64_t kElementsOfThread = int64_t{1} << 19;

  std::vector<Chunk> chunks_;
  std::vector<size_t> first_chunk_;
  int64_t open_elements_ = 0;
  int64_t elements_ = 0;
};

// Output that is not read again soon goes around the caches, if the whole set is larger than they are: a store to a
// line that is not cached would first read it from memory.
constexpr int64_t kStreamBytes = int64_t{32} << 20;

}  // namespace jepa
