// The gate matrices as the kernels see them.
#pragma once

#include <mpi_router/cuda/detail/any_matrix.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// A batch of matrices: base pointer and stride, or a table of pointers. Strides in elements.
template <class T>
struct batch {
  T* data = nullptr;
  T* const* table = nullptr;
  long long expert = 0;
  long long ffn = 0;
  long long hidden = 0;

  batch() = default;
  template <class U>
  explicit batch(const expert_batch_view<U, device_space>& view)
      : data(const_cast<T*>(view.data())),
        table(const_cast<T* const*>(reinterpret_cast<const T* const*>(view.table()))),
        expert(view.strides().expert),
        ffn(view.strides().ffn),
        hidden(view.strides().hidden) {}

  [[nodiscard]] __device__ __forceinline__ T* of(int e) const {
    return table != nullptr ? table[e] : data + e * expert;
  }
};

__device__ __forceinline__ bool aligned_to_16(const void* p, long long stride_bytes, long long extent_bytes) {
  return ((reinterpret_cast<unsigned long long>(p) | static_cast<unsigned long long>(stride_bytes) |
           static_cast<unsigned long long>(extent_bytes)) &
          15ULL) == 0;
}

}  // namespace detail
MPIROUTER_CUDA_END
