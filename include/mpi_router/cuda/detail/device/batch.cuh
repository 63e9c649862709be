// The gate matrices as the kernels see them.
#pragma once

#include <mpi_router/core/config.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A batch of matrices: base pointer and stride, or a table of pointers. Strides in elements.
template <class T>
struct batch {
  T* data = nullptr;
  T* const* table = nullptr;
  long long expert = 0;
  long long ffn = 0;
  long long hidden = 0;

  batch() = default;
  /// Of an expert_batch_view, which the device code itself need not know.
  template <class View>
  explicit batch(const View& view)
      : data(const_cast<T*>(view.data())),
        table(const_cast<T* const*>(reinterpret_cast<const T* const*>(view.table()))),
        expert(view.strides().expert),
        ffn(view.strides().ffn),
        hidden(view.strides().hidden) {}

  [[nodiscard]] batch<const T> as_const() const {
    batch<const T> same;
    same.data = data;
    same.table = table;
    same.expert = expert;
    same.ffn = ffn;
    same.hidden = hidden;
    return same;
  }
  [[nodiscard]] __device__ __forceinline__ T* of(int e) const {
    return table != nullptr ? table[e] : data + e * expert;
  }
};

MPIROUTER_CUDA_DETAIL_END
