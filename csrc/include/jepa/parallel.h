// Threads for CPU kernels: OpenMP with the caller's count, exceptions carried out of the region.
#pragma once

#include <cstdint>
#include <exception>

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

// Calls body(i) for i in [0, count), each index once, on at most num_threads threads. Dynamic scheduling balances uneven work;
// a body must write only what belongs to its index, so that results do not depend on the number of threads.
template <typename Body>
void parallel_for(int64_t count, int num_threads, const Body& body) {
  if (count <= 0) return;
  if (num_threads <= 1 || count == 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::exception_ptr error = nullptr;
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(jepa_parallel_error)
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace
}  // namespace jepa
