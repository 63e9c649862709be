// What packed_operator asks of its kernels: plain functions over plain pointers, so that a table of them may
// cross translation units that were compiled for other instruction sets.
#pragma once

#include <mpi_router/core/packed_views.hpp>

MPIROUTER_BEGIN_TYPES

namespace core {

/// The kernels of one packed format. Vectors are contiguous.
template <class View>
struct packed_kernel_table {
  float (*apply)(const View& a, const float* x, float* u) = nullptr;   ///< u = xM; returns xMxᵀ
  void (*project)(const View& a, const float* x, float* y) = nullptr;  ///< y = A x
  void (*lift)(const View& a, const float* y, float* u) = nullptr;     ///< u = y A
  /// u[k] = x[k] M and their energies for `count` images, one or two, in one read, with sums in double of
  /// codes and scales as they are. Null where there is none.
  void (*images_in_double)(const View& a, index_t count, const double* const* x, double* const* u,
                           double* energy) = nullptr;
};

/// The kernels of several formats.
template <class... Views>
struct packed_tables_for : packed_kernel_table<Views>... {
  template <class View>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE const packed_kernel_table<View>& of() const noexcept {
    return *this;
  }
};
/// Kernels of every packed format that there are kernels for.
using packed_tables = of_packed_views<packed_tables_for>;

}  // namespace core

MPIROUTER_END_TYPES
