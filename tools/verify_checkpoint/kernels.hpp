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

/// find_principal. Where the certificate comes from a probe, that reads floats first, half the bytes; doubles
/// where the squares could leave the range of float, or where its rounding hides the gap.
[[nodiscard]] inline mpi_router::principal_direction find_direction(
    const gate_matrix& a, mpi_router::vector_view<const double> row) {
  mpi_router::certify_options options;
  if (std::min(a.rows(), a.cols()) <= options.rigorous_up_to) {
    return find_principal(a, row, options);
  }
  const double largest = a.cwiseAbs().maxCoeff();
  if (largest < 0x1p-30 || largest > 0x1p+30) {
    return find_principal(gate_operator(a), row, options);
  }
  options.probe.failure_probability /= 2;  // of each of two probes
  using floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const floats rounded = a.cast<float>();
  auto found = find_principal(gate_operator(a), mpi_router::gram(rounded, kernels{}), row, options);
  if (found.direction.size() == 0 || found.proof.label >= mpi_router::certainty::probabilistic) {
    return found;
  }
  const Eigen::VectorXd start = found.direction;
  return find_principal(gate_operator(a), mpi_router::view(start), options);
}

}  // namespace verify
