// The instructions of a GPU of compute capability 8.0 or later, by the names that device source uses (see device_source.h).
#pragma once

#include <cstdint>

#include "device_source.h"
#include "warp_instructions.h"

namespace jepa {
namespace {

struct DeviceMachine {
  static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ void synchronise() { __syncthreads(); }
  static __device__ void synchronise_warp() { __syncwarp(); }
  template <typename T>
  static __device__ T load(const T* from) {
    return *from;
  }
  template <typename T>
  static __device__ void store(T* to, T value) {
    *to = value;
  }
  static __device__ uint2 load_8(const void* from) { return __ldg(static_cast<const uint2*>(from)); }
  static __device__ Chunk load_16(const void* from) {
    const uint4 words = __ldg(static_cast<const uint4*>(from));
    return {{words.x, words.y, words.z, words.w}};
  }
  static __device__ void store_16(void* to, const Chunk& chunk) {
    *static_cast<uint4*>(to) = make_uint4(chunk.word[0], chunk.word[1], chunk.word[2], chunk.word[3]);
  }
  static __device__ void copy_async(void* to, const void* from, bool inside) { jepa::copy_async(to, from, inside); }
  static __device__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
  static __device__ void load_matrices(uint32_t (&out)[4], const uint16_t* from) { jepa::load_matrices(out, from); }
  static __device__ void load_transposed_matrices(uint32_t (&out)[4], const uint16_t* from) {
    jepa::load_transposed_matrices(out, from);
  }
  template <typename Value>
  static __device__ void multiply_add(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
    jepa::multiply_add<Value>(sum, left, right0, right1);
  }
  template <typename Value>
  static __device__ void multiply_add(float (&sum)[4], const uint32_t (&left)[2], uint32_t right) {
    jepa::multiply_add<Value>(sum, left, right);
  }
  template <typename Value>
  static __device__ uint32_t pair(float low, float high) {
    return rounded_pair<Value>(low, high);
  }
  static __device__ float value(bf16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }
  static __device__ float value(fp16 x) { return __half2float(__ushort_as_half(x.bits)); }
  template <typename Value>
  static __device__ float2 values(uint32_t pair) {
    return pair_values<Value>(pair);
  }
  static __device__ float larger(float a, float b) { return fmaxf(a, b); }
  static __device__ float exchange(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
  static __device__ bool any(bool x) { return __any_sync(0xffffffffu, x); }
  static __device__ float power_of_2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
  }
  static __device__ float reciprocal(float x) { return __fdividef(1.0f, x); }
  static __device__ float logarithm_2(float x) { return __log2f(x); }
};

}  // namespace
}  // namespace jepa
