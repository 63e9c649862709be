// What the checks of experts spread over GPUs share: counting, device memory, comparing.
#pragma once

#include <cuda_runtime_api.h>
#include <mpi_router/core/scalar.hpp>
#include <mpi_router/core/views.hpp>
#include <mpi_router/cuda/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

namespace sharded_checks {

using namespace mpi_router;
namespace cuda = mpi_router::cuda;  // nccl_device.h brings another

inline bool quick = false;  // a few cases of each kind: for sanitizers
inline std::mutex mutex;
inline int failures = 0;
inline long checks = 0;

inline void check(bool good, const std::string& what) {
  const std::lock_guard lock(mutex);
  ++checks;
  if (!good && ++failures <= 40) std::printf("FAILED: %s\n", what.c_str());
}
inline void must(cudaError_t code) {
  if (code != cudaSuccess) {
    std::printf("CUDA: %s\n", cudaGetErrorString(code));
    std::exit(1);
  }
}

template <class T>
class buffer {
 public:
  explicit buffer(std::size_t size) : size_(size) {
    must(cudaMalloc(&data_, size * sizeof(T) + 1));
    must(cudaMemset(data_, 0xff, size * sizeof(T) + 1));  // memory may come back with the right answers in it
    must(cudaStreamSynchronize(nullptr));                 // the ranks' streams do not wait for it
  }
  explicit buffer(const std::vector<T>& values) : buffer(values.size()) {
    must(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;
  ~buffer() { cudaFree(data_); }
  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::vector<T> host() const {
    std::vector<T> out(size_);
    must(cudaMemcpy(out.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

/// The largest difference, to the largest element.
template <class T>
double difference(const std::vector<T>& a, const std::vector<T>& b) {
  double worst = a.size() == b.size() ? 0 : 1e9, scale = 1e-30;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    scale = std::max(scale, std::abs(static_cast<double>(widen<double>(b[i]))));
    const double off = std::abs(widen<double>(a[i]) - widen<double>(b[i]));
    worst = std::isfinite(off) ? std::max(worst, off) : 1e9;
  }
  return worst / scale;
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Calls `work` on the stream, or captures it and launches the graph three times; then waits.
template <class Work>
void run_on(cudaStream_t stream, bool captured, const Work& work) {
  must(cudaDeviceSynchronize());
  if (captured) {
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    work();
    must(cudaStreamEndCapture(stream, &graph));
    must(cudaGraphInstantiate(&replay, graph, 0));
    for (int i = 0; i < 3; ++i) must(cudaGraphLaunch(replay, stream));
    must(cudaStreamSynchronize(stream));
    must(cudaGraphExecDestroy(replay));
    must(cudaGraphDestroy(graph));
  } else {
    work();
    must(cudaStreamSynchronize(stream));
  }
}

/// One rank of one.
struct alone {
  [[nodiscard]] index_t rank() const { return 0; }
  [[nodiscard]] index_t size() const { return 1; }
  void all_gather(vector_view<const float, device_space> part, vector_view<float, device_space> all,
                  cuda::stream_t stream) const {
    must(cudaMemcpyAsync(all.data(), part.data(), static_cast<std::size_t>(part.size()) * sizeof(float),
                         cudaMemcpyDeviceToDevice, stream));
  }
};

/// The call throws usage_error, and says these words.
template <class Call>
void refused(const std::string& words, const Call& call) {
  try {
    call();
    check(false, "not refused: " + words);
  } catch (const usage_error& e) {
    check(std::string(e.what()).find(words) != std::string::npos, std::string("refused with ") + e.what());
  }
}

}  // namespace sharded_checks
