// One of two shared objects that instantiate the same kernels: OBJECT_ENTRY(values) runs a step and writes
// its rows.
#include <cuda_runtime.h>

#include <mpi_router/cuda/router.cuh>
#include <vector>

using namespace mpi_router;

extern "C" int OBJECT_ENTRY(float* result) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    return 77;
  }
  constexpr index_t n = 3, f = 20, d = 64;
  std::vector<float> weights(n * f * d), rows(n * d);
  unsigned state = 1;
  const auto random = [&state] {
    state = state * 1664525U + 1013904223U;
    return static_cast<float>(state >> 8) / 8388608.0F - 1.0F;
  };
  for (auto& x : weights) x = random();
  for (auto& x : rows) x = random();
  float *a = nullptr, *r = nullptr, *out = nullptr;
  void* scratch = nullptr;
  const auto ctx = cuda::make_context();
  bool ok = cudaMalloc(&a, weights.size() * 4) == cudaSuccess &&
            cudaMalloc(&r, rows.size() * 4) == cudaSuccess &&
            cudaMalloc(&out, rows.size() * 4) == cudaSuccess &&
            cudaMemcpy(a, weights.data(), weights.size() * 4, cudaMemcpyHostToDevice) == cudaSuccess &&
            cudaMemcpy(r, rows.data(), rows.size() * 4, cudaMemcpyHostToDevice) == cudaSuccess &&
            cudaMemset(out, 0xff, rows.size() * 4) == cudaSuccess;
  const auto experts = experts_nfd<device_space>(static_cast<const float*>(a), {n, f, d});
  const std::size_t bytes = cuda::router_rows_workspace(ctx, experts);
  ok = ok && cudaMalloc(&scratch, bytes) == cudaSuccess;
  cuda::router_rows(ctx, experts, row_major<device_space>(static_cast<const float*>(r), n, d),
                    row_major<device_space>(out, n, d), {}, {}, {scratch, bytes}, {.radius = 1.0});
  ok = ok && cudaMemcpy(result, out, rows.size() * 4, cudaMemcpyDeviceToHost) == cudaSuccess;
  cudaFree(a);
  cudaFree(r);
  cudaFree(out);
  cudaFree(scratch);
  return ok ? 0 : 1;
}
