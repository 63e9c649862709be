// The context of a device and a stream, which every call takes.
#pragma once

#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

#include <cstddef>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Never launched: the driver is asked how many clusters of it, with all shared memory, run at once.
template <class = void>
__global__ void __launch_bounds__(most_threads, 1) resident_kernel() {}

[[nodiscard]] inline int ask_resident_clusters(const context& ctx, int blocks) {
  const auto* const kernel = reinterpret_cast<const void*>(resident_kernel<>);
  allow_all_shared_memory(kernel, ctx.device);
  cudaLaunchAttribute size = {};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim.x = static_cast<unsigned>(blocks);
  size.val.clusterDim.y = 1;
  size.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks), 1, 1);
  config.blockDim = dim3(most_threads, 1, 1);
  config.dynamicSmemBytes = ctx.shared_memory;
  config.attrs = &size;
  config.numAttrs = 1;
  int count = 0;
  check("cudaOccupancyMaxActiveClusters", cudaOccupancyMaxActiveClusters(&count, kernel, &config));
  return count;
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// Asks the driver once what the calls need to know about the current device, which `stream` must be of.
[[nodiscard]] inline context make_context(stream_t stream = nullptr) {
  context ctx;
  ctx.stream = stream;
  detail::check("cudaGetDevice", cudaGetDevice(&ctx.device));
  const auto attribute = [&ctx](cudaDeviceAttr which) {
    int value = 0;
    detail::check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, which, ctx.device));
    return value;
  };
  ctx.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  ctx.capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  // Code for an older architecture, compiled by the driver, has no clusters and no bulk copies.
  cudaFuncAttributes code = {};
  detail::check("cudaFuncGetAttributes",
                cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(detail::resident_kernel<>)));
  if (code.ptxVersion > 0 && code.ptxVersion < 90 && ctx.capability >= 90) {
    ctx.capability = 80;
  }
  ctx.shared_memory = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  ctx.clusters[0] = ctx.multiprocessors;
  for (int i = 1; i < 4 && ctx.capability >= 90; ++i) {
    ctx.clusters[i] = detail::ask_resident_clusters(ctx, 1 << i);
  }
  return ctx;
}

MPIROUTER_CUDA_END
