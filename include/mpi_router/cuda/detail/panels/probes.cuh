// The two probes of a backward over stored columns, r and z̄, in shared memory.
#pragma once

#include <mpi_router/cuda/detail/plan/tuning.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// r and z̄ of an expert in shared memory: a thread's elements in the rows of each pass, which only its
/// neighbours share.
template <int passes, int lanes>
class panel_probes {
 public:
  __device__ __forceinline__ explicit panel_probes(float* memory)
      : own_(reinterpret_cast<float2*>(memory) + threadIdx.x / lanes) {}

  [[nodiscard]] __device__ __forceinline__ const float2& operator()(int p) const {
    return own_[p * pass_rows];
  }
  __device__ __forceinline__ void put(const float (&r)[passes], const float (&z)[passes]) const {
    for_each([&](int p, float2& both) { both = make_float2(r[p], z[p]); });
  }
  __device__ __forceinline__ void scale(float factor) const {
    for_each([&](int, float2& both) { both = make_float2(both.x * factor, both.y * factor); });
  }

 private:
  static constexpr int pass_rows = panel_threads / lanes;

  template <class Use>
  __device__ __forceinline__ void for_each(const Use& use) const {
    __syncwarp();
    if (threadIdx.x % lanes == 0) {
#pragma unroll
      for (int p = 0; p < passes; ++p) {
        use(p, own_[p * pass_rows]);
      }
    }
    __syncwarp();
  }
  float2* own_;
};

MPIROUTER_CUDA_DETAIL_END
