// What a backend asks of its kernels: plain functions over plain pointers, so that a table of them may cross
// translation units that were compiled for other instruction sets.
#pragma once

#include <mpi_router/core/scalar.hpp>

#include <type_traits>

MPIROUTER_BEGIN_TYPES

namespace core {

/// A matrix as it lies in memory: `rows` runs of `cols` contiguous elements, `stride` elements apart.
template <class T>
struct stored_rows {
  T* data = nullptr;
  index_t rows = 0;
  index_t cols = 0;
  index_t stride = 0;
};
/// One of any element type, whose runs are neurons ([N, F, D]) or hidden dimensions ([N, D, F]).
struct stored_matrix : stored_rows<const void> {
  bool by_neurons = true;
};

/// The element type of a gradient: none at all, that of the sums, or that of the weights.
enum class gradient_element : unsigned char { none, sum, weight };

/// y = A p, w = A q, u = wA and gradient (+)= y qᵀ + w pᵀ, stored as A is.
template <Accumulator S>
struct pull_back_work {
  const S* p = nullptr;
  const S* q = nullptr;
  S* y = nullptr;
  S* w = nullptr;
  S* u = nullptr;
  void* gradient = nullptr;
  index_t gradient_stride = 0;
  gradient_element element = gradient_element::none;
  bool accumulate = false;
};

/// The kernels of one element type. Vectors are contiguous.
template <Accumulator S>
struct kernel_table {
  index_t shortest_run = 0;  ///< fewest contiguous elements that a run may have
  S (*apply)(const stored_matrix& a, const S* x, S* u) = nullptr;
  /// apply to x[0] and x[1] in one read of an A whose runs are neurons. Null where there is none.
  void (*apply_two)(const stored_matrix& a, const S* const* x, S* const* u, S* energy) = nullptr;
  void (*pull_back)(const stored_matrix& a, const pull_back_work<S>& work) = nullptr;
  void (*dots)(const stored_matrix& a, const S* x, S* y) = nullptr;   ///< one for each run
  void (*axpys)(const stored_matrix& a, const S* y, S* u) = nullptr;  ///< the sum of the runs, weighted
  /// apply with sums in double, of weights stored in fewer bits whose runs are neurons. Null where there is
  /// none.
  double (*apply_in_double)(const stored_matrix& a, const double* x, double* u) = nullptr;
  /// The same of x[0] and x[1] in one read; there where that is.
  void (*apply_two_in_double)(const stored_matrix& a, const double* const* x, double* const* u,
                              double* energy) = nullptr;
};

/// The type that values of a format are summed in.
template <storage_format Format>
using sums_of = std::conditional_t<Format == storage_format::f64, double, float>;

/// The kernels of one format of several.
template <storage_format Format>
struct kernels_for {
  kernel_table<sums_of<Format>> table;
};
template <class Formats>
struct kernel_tables_of;
template <storage_format... Formats>
struct kernel_tables_of<storage_formats<Formats...>> : kernels_for<Formats>... {
  template <storage_format Format>
  static constexpr bool has = ((Format == Formats) || ...);
  template <storage_format Format>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE const kernel_table<sums_of<Format>>& of() const noexcept {
    return kernels_for<Format>::table;
  }
};
/// Kernels of every format that is compiled.
using kernel_tables = kernel_tables_of<compiled_formats>;

}  // namespace core

MPIROUTER_END_TYPES
