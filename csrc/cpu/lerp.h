// torch.lerp's formula, shared by the kernels that update a target.
#pragma once

#include <cmath>

namespace jepa {
namespace {  // one copy a translation unit: see float_types.h

// The branch keeps the result exact at both ends.
template <typename A>
inline A lerp(A target, A online, A weight) {
  const A difference = online - target;
  return weight < A(0.5) ? std::fma(weight, difference, target) : std::fma(weight - A(1), difference, online);
}

}  // namespace
}  // namespace jepa
