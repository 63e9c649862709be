// The vector that an operator of A, [F, D], reads and the one that it writes: their sizes, and that they lie
// apart.
#pragma once

#include <mpi_router/core/views.hpp>

MPIROUTER_BEGIN_TYPES
namespace core {

/// `matrix` begins the message: "A is".
template <class Op, class In, class Out>
MPIROUTER_ALWAYS_INLINE void expect_sizes(const char* what, const char* matrix, const Op& op, const In& in,
                                          index_t in_size, const Out& out, index_t out_size) {
  expect(in.size() == in_size && out.size() == out_size, what, ": ", matrix, " [F = ", op.ffn_dim(),
         ", D = ", op.dimension(), "], but the vectors have ", in.size(), " and ", out.size(),
         " elements, not ", in_size, " and ", out_size);
}

template <class Op, class In, class Out>
MPIROUTER_ALWAYS_INLINE void expect_operands(const char* what, const Op& op, const In& in, index_t in_size,
                                             const Out& out, index_t out_size) {
  expect_sizes(what, "A is", op, in, in_size, out, out_size);
  expect(!overlap(in, out), what, ": input and output overlap");
}

}  // namespace core
MPIROUTER_END_TYPES
