// Errors of CUDA calls, and the one way in which kernels are launched.
#pragma once

#include <cuda_runtime_api.h>
#include <mpi_router/core/error.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>
#include <mpi_router/cuda/types.hpp>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "mpi_router/cuda needs sm_80 or newer: pass -arch=sm_80, sm_90 or that of your GPU"
#endif

MPIROUTER_CUDA_DETAIL_BEGIN

using core::concatenate;
using core::expect;

[[noreturn]] inline void cuda_failure(const char* call, int code, const char* reason) {
  const std::string message = concatenate("mpi_router: ", call, ": ", reason, " (", code, ")");
#if MPIROUTER_HAS_EXCEPTIONS
  throw cuda_error(message, code);
#else
  std::fprintf(stderr, "%s\n", message.c_str());
  std::abort();
#endif
}

inline void check(const char* call, cudaError_t code) {
  if (code != cudaSuccess) [[unlikely]] {
    cuda_failure(call, static_cast<int>(code), cudaGetErrorString(code));
  }
}

/// A call runs on the device that is current, whatever its context says: the two must agree.
inline void expect_device(const char* what, const context& ctx) {
  int current = 0;
  check("cudaGetDevice", cudaGetDevice(&current));
  expect(current == ctx.device, what, ": the context is of device ", ctx.device, ", where device ", current,
         " is current: call cudaSetDevice before it");
}

/// Lets a block of `kernel` have all the shared memory that the device has to give, whatever a launch takes.
/// The value is a property of the kernel that all threads and graphs share; since it is the same at every
/// call, none lowers what another is about to launch with. (A kernel with static shared memory has less to
/// ask for, and would fail here: those that take this much have none.)
inline void allow_all_shared_memory(const void* kernel, int device) {
  int most = 0;
  check("cudaDeviceGetAttribute",
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check("cudaFuncSetAttribute",
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
}

struct launch_shape {
  unsigned blocks = 1;
  unsigned threads = 1;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;
  unsigned blocks_y = 1;
};

/// Launches `kernel`. What it is launched with is said here, for this launch alone. On sm_90 the kernel may
/// start before the one ahead of it in the stream has ended (programmatic dependent launch): every kernel
/// here waits for it on the device, before it reads or, if its inputs are at rest, before it writes.
template <class... Parameters, class... Arguments>
void launch(const char* name, const context& ctx, const launch_shape& shape, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
  expect_device(name, ctx);
  if (shape.shared_bytes > plain_shared_memory) {
    allow_all_shared_memory(reinterpret_cast<const void*>(kernel), ctx.device);
  }
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (ctx.capability >= 90) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = shape.cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.blocks, shape.blocks_y, 1);
  config.blockDim = dim3(shape.threads, 1, 1);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = ctx.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  check(name, cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

MPIROUTER_CUDA_DETAIL_END
