// What a backend asks of its kernels: plain functions over plain pointers, so that a table of them may cross
// translation units that were compiled for other instruction sets.
#pragma once

#include <mpi_router/core/scalar.hpp>

MPIROUTER_BEGIN_TYPES

namespace core {

/// A matrix as it lies in memory: `rows` runs of `cols` contiguous elements, `stride` elements apart. The
/// runs are neurons ([N, F, D]) or hidden dimensions ([N, D, F]).
struct stored_matrix {
  const void* data = nullptr;
  index_t rows = 0;
  index_t cols = 0;
  index_t stride = 0;
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
  void (*pull_back)(const stored_matrix& a, const pull_back_work<S>& work) = nullptr;
  void (*dots)(const stored_matrix& a, const S* x, S* y) = nullptr;   ///< one for each run
  void (*axpys)(const stored_matrix& a, const S* y, S* u) = nullptr;  ///< the sum of the runs, weighted
};

/// Kernels of every element type.
struct kernel_tables {
  kernel_table<double> f64;
  kernel_table<float> f32;
  kernel_table<float> bf16;
  kernel_table<float> f16;
};

}  // namespace core

MPIROUTER_END_TYPES
