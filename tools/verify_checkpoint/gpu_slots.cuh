// What a GPU keeps for the experts under way: a stream and page-locked memory for each.
#pragma once

#include "gpu.hpp"

#include <mpi_router/cuda/gram_operator.cuh>

#include <cstddef>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace verify {

/// Throws std::runtime_error where a call of CUDA failed.
inline void must(const char* call, cudaError_t code) {
  if (code != cudaSuccess) {
    throw std::runtime_error(std::string("--gpu: ") + call + ": " + cudaGetErrorString(code));
  }
}

/// Vectors of the spaces that a search has at once: two bases of 256 + 2, and a probe's 300 + 9.
inline constexpr index_t most_vectors = 320;
inline constexpr index_t most_spaces = 3;
inline constexpr std::size_t chunk = std::size_t{1} << 20U;  // that is copied at once

[[nodiscard]] constexpr std::size_t rounded(std::size_t bytes) { return (bytes + 255) / 256 * 256; }
/// Of vectors on the device: even, so that each begins at 16 bytes.
[[nodiscard]] constexpr index_t stride_of(index_t dimension) { return (dimension + 1) / 2 * 2; }
[[nodiscard]] constexpr std::size_t bytes_of_vectors(index_t count, index_t dimension) {
  return static_cast<std::size_t>(count * stride_of(dimension)) * sizeof(double);
}
[[nodiscard]] inline std::size_t staging_bytes(index_t dimension) {
  return rounded(mpi_router::cuda::gram_operator<double>::staging_bytes(dimension, most_vectors));
}

/// One expert under way: what it needs that is not made anew for each.
struct slot {
  cudaStream_t stream = nullptr;
  std::byte* staging = nullptr;  // page-locked: what a gram_operator needs, then a chunk
};

struct gpu::implementation {
  int device = 0;
  std::string name;
  mpi_router::cuda::context context;
  std::byte* pinned = nullptr;
  std::size_t staging = 0;  // bytes of a slot before its chunk
  std::vector<slot> free;
  std::mutex mutex;

  ~implementation() {
    for (const auto& one : free) {
      cudaStreamDestroy(one.stream);
    }
    cudaFreeHost(pinned);
  }
  slot take() {
    const std::scoped_lock lock(mutex);
    if (free.empty()) {
      throw std::logic_error("more experts under way than there is room for");
    }
    const slot one = free.back();
    free.pop_back();
    return one;
  }
  void give_back(const slot& one) {
    const std::scoped_lock lock(mutex);
    free.push_back(one);
  }
};

}  // namespace verify
