// How the GPU is timed: buffers in rotation, CUDA events around a round of them, the median of many rounds.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace gpu_bench {

inline void must(cudaError_t code, const char* what) {
  if (code != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
    std::exit(1);
  }
}

template <class T>
class device_buffer {
 public:
  explicit device_buffer(std::size_t size = 0) : size_(size) {
    if (size > 0) {
      must(cudaMalloc(&data_, size * sizeof(T)), "cudaMalloc");
    }
  }
  device_buffer(device_buffer&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
  }
  device_buffer& operator=(device_buffer&&) = delete;
  ~device_buffer() { cudaFree(data_); }
  [[nodiscard]] T* data() const { return static_cast<T*>(data_); }
  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  std::size_t size_;
};

/// Microseconds of one call: the median over `rounds` of the mean over a round of call(0) … call(copies − 1).
template <class Call>
double microseconds(cudaStream_t stream, int copies, int rounds, const Call& call) {
  cudaEvent_t begin = nullptr, end = nullptr;
  must(cudaEventCreate(&begin), "cudaEventCreate");
  must(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times;
  for (int r = -3; r < rounds; ++r) {
    must(cudaEventRecord(begin, stream), "cudaEventRecord");
    for (int i = 0; i < copies; ++i) {
      call(i);
    }
    must(cudaEventRecord(end, stream), "cudaEventRecord");
    must(cudaEventSynchronize(end), "cudaEventSynchronize");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (r >= 0) {
      times.push_back(ms * 1000.0F / static_cast<float>(copies));
    }
  }
  must(cudaGetLastError(), "a kernel");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

/// One line of the table, written as JSON too.
struct row {
  std::string work, shape, type;
  double us;
  double bytes;  // that must be moved
};

inline void print(const row& r) {
  std::printf("{\"work\": \"%s\", \"shape\": \"%s\", \"type\": \"%s\", \"us\": %.3f, \"bytes\": %.0f}\n",
              r.work.c_str(), r.shape.c_str(), r.type.c_str(), r.us, r.bytes);
  std::fflush(stdout);
}

}  // namespace gpu_bench
