// What shows whether a call keeps its place in the stream though its kernels start early: a kernel that lets
// them start at once, and writes late what they read, or what they write.
#pragma once

#include "gpu_support.hpp"

namespace gpu_check {
namespace {

struct late_write {
  void* to;
  const void* from;
  std::size_t bytes;
};
struct late_writes {
  late_write list[8];
  int count;
};

/// Lets the next kernel start, and writes some 0.2 ms later.
template <class = void>
__global__ void late_kernel(late_writes writes) {
  cuda::detail::let_next_kernel_start();
  for (const long long begin = clock64(); clock64() - begin < 400000;) {
  }
  for (int i = 0; i < writes.count; ++i) {
    const late_write& w = writes.list[i];
    for (std::size_t at = threadIdx.x; at < w.bytes; at += blockDim.x) {
      static_cast<unsigned char*>(w.to)[at] = static_cast<const unsigned char*>(w.from)[at];
    }
  }
}

/// Device memory whose content of now can be taken away and come back late.
class late_array {
 public:
  template <class T>
  explicit late_array(const device_array<T>& memory)
      : at_(memory.data()), bytes_(memory.host().size() * sizeof(T)), content_(bytes_) {
    must(cudaMemcpy(content_.data(), at_, bytes_, cudaMemcpyDeviceToDevice), "cudaMemcpy");
  }
  /// Writes late what the memory held, which is NaNs until then.
  [[nodiscard]] late_write restore() const {
    must(cudaMemset(at_, 0xff, bytes_), "cudaMemset");
    return {at_, content_.data(), bytes_};
  }
  /// Writes late what the memory held, which is `decoy` until then.
  template <class T>
  [[nodiscard]] late_write restore(const std::vector<T>& decoy) const {
    must(cudaMemcpy(at_, decoy.data(), bytes_, cudaMemcpyHostToDevice), "cudaMemcpy");
    return {at_, content_.data(), bytes_};
  }

 private:
  void* at_;
  std::size_t bytes_;
  device_array<unsigned char> content_;
};

template <class Call>
void after(const std::vector<late_write>& writes, const Call& call) {
  late_writes list{};
  for (const late_write& w : writes) {
    list.list[list.count++] = w;
  }
  sync();
  late_kernel<><<<1, 256>>>(list);
  must(cudaGetLastError(), "late_kernel");
  call();
  sync();
}

std::vector<float> values_of(generator& g, std::size_t size) {
  std::normal_distribution<float> normal;
  std::vector<float> out(size);
  for (auto& x : out) {
    x = normal(g);
  }
  return out;
}

template <class T>
bool same(const device_array<T>& memory, const std::vector<T>& expected) {
  return std::memcmp(memory.host().data(), expected.data(), expected.size() * sizeof(T)) == 0;
}

}  // namespace
}  // namespace gpu_check
