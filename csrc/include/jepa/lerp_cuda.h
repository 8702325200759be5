// torch.lerp's two branches on the device: exact at both ends.
#pragma once

namespace jepa {
namespace {

__device__ inline float lerp(float target, float online, float weight) {
  const float difference = online - target;
  return weight < 0.5f ? fmaf(weight, difference, target) : fmaf(weight - 1.0f, difference, online);
}
__device__ inline double lerp(double target, double online, double weight) {
  const double difference = online - target;
  return weight < 0.5 ? fma(weight, difference, target) : fma(weight - 1.0, difference, online);
}

}  // namespace
}  // namespace jepa
