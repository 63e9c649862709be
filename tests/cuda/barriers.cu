// Not a race: groups of a block meet barriers of their own, not equally many, then one barrier of the block,
// and read each other's words. racecheck of CUDA 13.0 reports hazards in exchange<false>, and none in
// exchange<true>, whose barrier of the block stands twice; for this reason MPIROUTER_CUDA_RACECHECK exists.
// scripts/gpu runs both.
#include <cstdio>

namespace {

constexpr int group_threads = 64;
constexpr int groups = 4;

template <bool twice>
__global__ void exchange(int* out) {
  __shared__ int word[groups];
  __shared__ float scratch[2][groups][group_threads / 32];
  const int group = static_cast<int>(threadIdx.x) / group_threads;
  const int rank = static_cast<int>(threadIdx.x) % group_threads;
  float sum = 0.0F;
  for (int i = 0; i < 3 + group; ++i) {
    if (rank % 32 == 0) {
      scratch[i % 2][group][rank / 32] = static_cast<float>(i);
    }
    asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(group_threads) : "memory");
    for (const float x : scratch[i % 2][group]) {
      sum += x;
    }
  }
  if (rank == 0) {
    word[group] = static_cast<int>(sum);
  }
  __syncthreads();
  if (twice) {
    __syncthreads();
  }
  int total = 0;
  for (const int w : word) {
    total += w;
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

}  // namespace

int main() {
  int* out = nullptr;
  cudaMalloc(&out, 4 * groups * group_threads * sizeof(int));
  exchange<false><<<4, groups * group_threads>>>(out);
  exchange<true><<<4, groups * group_threads>>>(out);
  const cudaError_t code = cudaDeviceSynchronize();
  std::puts(cudaGetErrorString(code));
  return code == cudaSuccess ? 0 : 1;
}
