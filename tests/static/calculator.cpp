// NVIDIA's occupancy calculator behind a pipe: reads "major minor warps/SM bytes/SM bytes/block registers bytes warps" a line and
// writes the resident blocks of a multiprocessor and the bits of what limits them.
#include <cuda_occupancy.h>

#include <cstdio>

int main() {
  int major, minor, most_warps, registers, warps;
  size_t shared_sm, shared_block, shared;
  while (std::scanf("%d %d %d %zu %zu %d %zu %d", &major, &minor, &most_warps, &shared_sm, &shared_block, &registers, &shared,
                    &warps) == 8) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = most_warps * 32;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = shared_sm;
    device.sharedMemPerBlockOptin = shared_block;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = shared;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, warps * 32, shared) != CUDA_OCC_SUCCESS) {
      return 1;
    }
    std::printf("%d %u\n", result.activeBlocksPerMultiprocessor, result.limitingFactors);
  }
  return 0;
}
