// What is read of a layer, in double, and what multiplies it.
#pragma once

#include <mpi_router/io/moe_layers.hpp>
#include <mpi_router/verify/expert_direction.hpp>
#ifdef VERIFY_CHECKPOINT_SIMD
#include <mpi_router/backend/simd.hpp>
#endif

namespace verify {

using mpi_router::gate_matrix;
using mpi_router::index_t;
using mpi_router::moe_layer;

/// The one-read kernels where they are to be had.
#ifdef VERIFY_CHECKPOINT_SIMD
using kernels = mpi_router::simd;
#else
using kernels = mpi_router::reference;
#endif

/// M = AᵀA. Holds a view of A.
[[nodiscard]] inline auto gate_operator(const gate_matrix& a) { return mpi_router::gram(a, kernels{}); }

/// The gate matrix A of one expert, [F, D].
[[nodiscard]] inline gate_matrix read_gate(const moe_layer& layer, index_t expert) {
  return mpi_router::visit_gate(layer.gates[static_cast<std::size_t>(expert)], [](const auto& stored) {
    gate_matrix a(stored.rows(), stored.cols());
    for (index_t f = 0; f < a.rows(); ++f) {
      for (index_t d = 0; d < a.cols(); ++d) {
        a(f, d) = mpi_router::widen<double>(stored(f, d));
      }
    }
    return a;
  });
}

/// The router's row for one expert.
[[nodiscard]] inline Eigen::VectorXd read_row(const moe_layer& layer, index_t expert) {
  return mpi_router::visit_router(layer, [&](const auto& router) {
    Eigen::VectorXd row(router.cols());
    for (index_t d = 0; d < row.size(); ++d) {
      row[d] = mpi_router::widen<double>(router(expert, d));
    }
    return row;
  });
}

}  // namespace verify
