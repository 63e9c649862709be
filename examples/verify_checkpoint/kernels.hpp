// What gate matrices are multiplied by: the one-read kernels where they are to be had.
#pragma once

#include "layout.hpp"

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/verify/principal.hpp>
#ifdef VERIFY_CHECKPOINT_SIMD
#include <mpi_router/backend/simd.hpp>
#endif

#include <algorithm>

namespace verify {

#ifdef VERIFY_CHECKPOINT_SIMD
using kernels = mpi_router::simd;
#else
using kernels = mpi_router::reference;
#endif

/// M = AᵀA. Holds a view of A.
[[nodiscard]] inline auto gate_operator(const gate_matrix& a) { return mpi_router::gram(a, kernels{}); }

/// find_principal. Where the certificate comes from a probe, that reads floats, half the bytes; not where
/// their squares could leave the range of float.
[[nodiscard]] inline mpi_router::principal_direction find_direction(
    const gate_matrix& a, mpi_router::vector_view<const double> row) {
  const mpi_router::certify_options options;
  if (std::min(a.rows(), a.cols()) <= options.rigorous_up_to) {
    return find_principal(a, row, options);
  }
  const double largest = a.cwiseAbs().maxCoeff();
  if (largest < 0x1p-30 || largest > 0x1p+30) {
    return find_principal(gate_operator(a), row, options);
  }
  using floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const floats rounded = a.cast<float>();
  return find_principal(gate_operator(a), mpi_router::gram(rounded, kernels{}), row, options);
}

}  // namespace verify
